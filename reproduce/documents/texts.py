"""What documents say: sentences, names, things, amounts, code.

A text is held out by a hash of its letters, so no held-out document has a sentence, a name or a
thing that training has seen. Sentences are those of `data/` that may be trained on.
"""

import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from faker import Faker

_COUNTRIES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "nl_NL", "da_DK")
_FIRST_DAY = date(1970, 1, 1)
_DAYS = 60 * 365
_ASCII = re.compile(r"[ -~]+")
THINGS = (
    "apple juice", "rye bread", "olive oil", "green tea", "tomato soup", "goat cheese", "orange",
    "brown sugar", "salted butter", "dark chocolate", "sparkling water", "coffee beans",
    "paper towels", "light bulb", "desk lamp", "steel screws", "wood glue", "garden hose",
    "paint brush", "door handle", "phone charger", "usb cable", "keyboard", "mouse pad",
    "monitor stand", "printer ink", "notebook", "ball pen", "envelope", "stapler", "office chair",
    "headphones", "sd card", "battery pack", "water filter", "hand soap", "tooth brush",
    "shampoo", "bath towel", "pillow case", "wool blanket", "cotton shirt", "rain coat",
    "leather belt", "running shoes", "winter socks", "bicycle pump", "tennis balls", "yoga mat",
    "camping stove", "sleeping bag", "city map", "train ticket", "museum entry", "hotel room",
    "car wash", "oil change", "brake pads", "window repair", "roof cleaning", "garden work",
    "translation", "proof reading", "software licence", "web hosting", "data backup",
    "site survey", "training day", "delivery", "installation", "rental van", "meeting room",
    "lunch menu", "fish and chips", "mushroom risotto", "chicken curry", "apple pie", "ice cream",
    "house wine", "lemonade", "breakfast plate", "cheese platter", "ham sandwich", "egg salad",
    "potato wedges",
)  # fmt: skip
_COLOURS = (
    "red", "blue", "green", "black", "white", "grey", "large", "small", "extra", "organic",
    "classic", "double", "mini", "soft", "new",
)  # fmt: skip


@dataclass
class Texts:
    """Draws texts, either those for training or those that are held out."""

    rng: random.Random
    sentences: list[str]
    code: list[str]
    words: list[str]
    held_out: bool
    countries: list[Faker]

    def _mine(self, text: str) -> bool:
        return is_held_out(text) == self.held_out

    def _drawn(self, make: Callable[[], str]) -> str:
        """The first text that is ours and that a font can show."""
        while True:
            text = " ".join(str(make()).split())
            if _ASCII.fullmatch(text) and self._mine(text):
                return text

    @property
    def faker(self) -> Faker:
        """Of one country. Faker's own choice among several differs from process to process."""
        return self.rng.choice(self.countries)

    def name(self) -> str:
        """A person."""
        return self._drawn(lambda: self.faker.name())

    def company(self) -> str:
        """A company."""
        return self._drawn(lambda: self.faker.company())

    def street(self) -> str:
        """A street and a number."""
        return self._drawn(lambda: self.faker.street_address())

    def city(self) -> str:
        """A city, in half of the cases with its code."""
        with_code = self.rng.random() < 0.5

        def make() -> str:
            faker = self.faker
            return f"{faker.postcode()} {faker.city()}" if with_code else faker.city()

        return self._drawn(make)

    def email(self) -> str:
        """An address."""
        return self._drawn(lambda: self.faker.email())

    def phone(self) -> str:
        """A number."""
        return self._drawn(lambda: self.faker.phone_number())

    def job(self) -> str:
        """A profession."""
        return self._drawn(lambda: self.faker.job())

    def thing(self) -> str:
        """Something that is sold."""

        def make() -> str:
            thing = self.rng.choice(THINGS)
            if self.rng.random() < 0.5:
                thing = f"{self.rng.choice(_COLOURS)} {thing}"
            if self.rng.random() < 0.2:
                thing += f" {self.rng.randrange(1, 20) * 50} {self.rng.choice(['g', 'ml'])}"
            return self.rng.choice((thing, thing.capitalize(), thing.title()))

        return self._drawn(make)

    def date(self) -> str:
        """A day in one of the usual forms."""
        day = _FIRST_DAY + timedelta(days=self.rng.randrange(_DAYS))
        form = self.rng.choice(("%d.%m.%Y", "%Y-%m-%d", "%d/%m/%Y", "%d %B %Y", "%B %d, %Y"))
        return day.strftime(form)

    def number(self) -> str:
        """A number of a document, with letters at times."""
        digits = str(self.rng.randrange(10 ** self.rng.randrange(3, 7), 10**7))
        return self.rng.choice(("", "", "A-", "INV-", "No. ", "R")) + digits

    def sum_of_money(self) -> str:
        """Up to six digits."""
        return amount(self.rng.randrange(10 ** self.rng.randrange(3, 7)))

    def sentence(self) -> str:
        """A sentence."""
        return self.rng.choice(self.sentences)

    def rare_words(self, count: int) -> str:
        """Words of the whole vocabulary, rare ones as often as frequent ones."""
        return " ".join(self.rng.choice(self.words) for _ in range(count))

    def listing(self) -> str:
        """A few lines of code."""
        lines = self.rng.choice(self.code).splitlines()
        count = self.rng.randrange(3, 9)
        start = self.rng.randrange(max(1, len(lines) - count + 1))
        kept = lines[start : start + count]
        indent = min(len(line) - len(line.lstrip()) for line in kept)
        return "\n".join(line[indent:] for line in kept)


def amount(cents: int) -> str:
    """A sum of money."""
    return f"{cents // 100}.{cents % 100:02d}"


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the documents that are never trained on: one in eight."""
    letters = re.sub(r"[^a-z0-9]", "", text.lower())
    return zlib.crc32(letters.encode()) % 8 == 0


def open_texts(data: Path, seed: int, *, held_out: bool) -> Texts:
    """Texts of `data/`, of one half.

    Args:
        data: the folder with `flan_cot`, `gsm8k`, `mbpp`, `self_instruct`.
        seed: of everything that is drawn.
        held_out: whether for documents to score on.
    """
    rng = random.Random(f"documents {seed} {held_out}")
    countries = [Faker(country) for country in _COUNTRIES]
    for faker in countries:
        faker.seed_instance(rng.randrange(2**32))
    everything = _sentences(data)
    sentences = [s for s in everything if is_held_out(s) == held_out]
    code = [c for c in _code(data) if is_held_out(c) == held_out]
    found = {w for s in everything for w in s.split()}
    words = sorted(w for w in found if is_held_out(w) or not held_out)
    return Texts(rng, sentences, code, words, held_out, countries)


def _sentences(data: Path) -> list[str]:
    """Sentences of texts that may be trained on."""
    texts: list[str] = []
    for path in sorted((data / "flan_cot").glob("*.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines():
            question, _, reason = line.split("\t")[:3]
            texts += [re.split(r"\\n|Options", question)[0], reason]
    for line in (data / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts += [row["question"], re.sub(r"<<.*?>>", "", row["answer"]).replace("\n", " ")]
    for line in (data / "self_instruct/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts += [row["instruction"], *(case["output"] for case in row["instances"])]
    sentences = (s.strip() for text in texts for s in re.split(r"(?<=[.?!])\s+|\n", text))
    kept = (s for s in sentences if 15 <= len(s) <= 200 and _ASCII.fullmatch(s) and "\\" not in s)
    return list(dict.fromkeys(kept))


def _code(data: Path) -> list[str]:
    """Programs whose tasks nobody is scored on."""
    found = []
    for line in (data / "mbpp/mbpp.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row["code"].replace("\r", "").replace("\t", "    ").strip()
        if row["task_id"] > 510 and re.fullmatch(r"[ -~\n]+", text):
            found.append(text)
    return found
