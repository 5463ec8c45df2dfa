"""Kinds of documents: prose, receipts, invoices, tables, forms, code listings."""

import json
import textwrap
from collections.abc import Callable

from reproduce.documents.fonts import EQUAL_WIDTHS, TRAINED, letter_width
from reproduce.documents.pages import LETTER, PITCH, Page, Sheet
from reproduce.documents.texts import Texts, amount

TRANSCRIBE = "Transcribe the document."
AS_JSON = "Give all fields as JSON."


def field_question(name: str) -> str:
    """The question for one field."""
    return f"What is the {name}?"


def _sheet(texts: Texts, faces: tuple[str, ...], least: int, most: int) -> Sheet:
    rng = texts.rng
    width, face = rng.randrange(least, most), rng.choice(faces)
    size, margin = rng.randrange(14, 18), rng.randrange(2, 13)
    squash = max(1.0, LETTER * rng.uniform(0.97, 1.1) / (letter_width(face) * size))
    return Sheet(width, face, size * squash, margin, rng, squash=squash)


def _finish(sheet: Sheet, kind: str, fields: dict[str, str]) -> Page:
    questions = [(field_question(name), value) for name, value in fields.items()]
    questions.append((AS_JSON, json.dumps(fields)))
    return sheet.finish(kind, fields, questions)


def _fill(sheet: Sheet, lines: list[str]) -> None:
    """Lines at the left margin, on a page that is no wider than they need."""
    for line in lines:
        sheet.left(line)
    sheet.width = int(max(map(sheet.length, lines)) + 2 * sheet.margin) + 1


def prose(texts: Texts, faces: tuple[str, ...]) -> Page:
    """A few sentences."""
    sheet = _sheet(texts, faces, 200, 420)
    most = texts.rng.randrange(1, 9)
    lines: list[str] = []
    while len(lines) < most:
        lines += sheet.wrapped(texts.sentence(), sheet.right - sheet.margin)
    _fill(sheet, lines[:most])
    return sheet.finish("prose")


def words(texts: Texts, faces: tuple[str, ...]) -> Page:
    """Words in no order, rare ones as often as others, to learn from."""
    sheet = _sheet(texts, faces, 200, 420)
    text = texts.rare_words(texts.rng.randrange(4, 40))
    _fill(sheet, sheet.wrapped(text, sheet.right - sheet.margin))
    return sheet.finish("words")


def numbers(texts: Texts, faces: tuple[str, ...]) -> Page:
    """Lines of numbers, dates and codes, to learn from."""
    sheet = _sheet(texts, faces, 180, 360)
    draws = (texts.number, texts.date, texts.phone, texts.email, texts.city, texts.sum_of_money)
    lines = []
    for _ in range(texts.rng.randrange(2, 8)):
        text = " ".join(texts.rng.choice(draws)() for _ in range(4))
        lines.append(sheet.wrapped(text, sheet.right - sheet.margin)[0])
    _fill(sheet, lines)
    return sheet.finish("numbers")


def _items(texts: Texts, count: int) -> list[tuple[int, str, int]]:
    """Quantity, name and price in cents."""
    rng = texts.rng
    return [(rng.choice((1, 1, 1, 2, 3, rng.randrange(4, 30))), texts.thing(),
             rng.randrange(20, 10 ** rng.randrange(3, 5))) for _ in range(count)]  # fmt: skip


def receipt(texts: Texts, faces: tuple[str, ...]) -> Page:
    """What a till prints."""
    sheet, rng = _sheet(texts, faces, 270, 380), texts.rng
    fields = {"shop": texts.company()}
    sheet.centred(fields["shop"])
    if rng.random() < 0.6:
        sheet.centred(texts.street())
    fields["date"] = texts.date()
    sheet.centred(fields["date"])
    if rng.random() < 0.5:
        sheet.rule()
    total = 0
    for quantity, name, price in _items(texts, rng.randrange(2, 6)):
        total += quantity * price
        label = f"{quantity} {name}" if quantity > 1 or rng.random() < 0.5 else name
        sheet.sides(label, amount(quantity * price))
    sheet.rule()
    word = rng.choice(("Total", "TOTAL", "Sum", "Amount due", "To pay"))
    fields["total"] = amount(total)
    sheet.sides(word, fields["total"])
    if rng.random() < 0.5:
        sheet.centred(
            rng.choice(("Thank you", "Thank you for your visit", "Come again", "Paid by card"))
        )
    return _finish(sheet, "receipt", fields)


def invoice(texts: Texts, faces: tuple[str, ...]) -> Page:
    """A bill with a customer and items."""
    sheet, rng = _sheet(texts, faces, 330, 440), texts.rng
    fields = {"number": texts.number(), "date": texts.date(), "customer": texts.name()}
    sheet.left(texts.company())
    label = rng.choice(("Invoice", "Invoice number", "Bill", "Invoice No.", "Reference"))
    sheet.left(f"{label}: {fields['number']}")
    sheet.left(f"{rng.choice(('Date', 'Issued', 'Invoice date'))}: {fields['date']}")
    sheet.left(f"{rng.choice(('Customer', 'Bill to', 'Client'))}: {fields['customer']}")
    sheet.rule()
    total = 0
    for quantity, name, price in _items(texts, rng.randrange(1, 5)):
        total += quantity * price
        sheet.sides(f"{quantity} x {name}", amount(quantity * price))
    if rng.random() < 0.5:
        tax = total // 5
        sheet.sides(rng.choice(("VAT 20%", "Tax")), amount(tax))
        total += tax
    sheet.rule()
    fields["total"] = amount(total)
    sheet.sides(rng.choice(("Total", "Total due", "Amount due", "Balance")), fields["total"])
    return _finish(sheet, "invoice", fields)


def table(texts: Texts, faces: tuple[str, ...]) -> Page:
    """Rows and columns with a head."""
    sheet, rng = _sheet(texts, faces, 300, 440), texts.rng
    draws: dict[str, Callable[[], str]] = {
        "Item": texts.thing, "City": lambda: texts.city().split()[-1], "Date": texts.date,
        "Price": texts.sum_of_money,
        "Count": lambda: str(rng.randrange(1000)), "Code": texts.number,
    }  # fmt: skip
    heads = ["Name", *rng.sample(sorted(draws), rng.choice((1, 2)))]
    draws["Name"] = lambda: texts.name().split()[0]
    rows = [heads, *([draws[head]() for head in heads] for _ in range(rng.randrange(2, 6)))]
    widths = [max(sheet.length(row[i]) for row in rows) for i in range(len(heads))]
    gap = rng.randrange(14, 30)
    starts = [sheet.margin + sum(widths[:i]) + gap * i for i in range(len(heads))]
    sheet.width = max(sheet.width, int(starts[-1] + widths[-1] + sheet.margin))
    for i, row in enumerate(rows):
        sheet.line(*zip(starts, row, strict=True))
        if not i or rng.random() < 0.3:
            sheet.rule()
    names = [row[0] for row in rows[1:]]
    fields = {f"{head} of {row[0]}": value for row in rows[1:] if names.count(row[0]) == 1
              for head, value in zip(heads[1:], row[1:], strict=True)}  # fmt: skip
    return sheet.finish("table", fields, [(field_question(k), v) for k, v in fields.items()])


def form(texts: Texts, faces: tuple[str, ...]) -> Page:
    """Labels and what was filled in."""
    sheet, rng = _sheet(texts, faces, 300, 440), texts.rng
    draws: dict[str, Callable[[], str]] = {
        "name": texts.name, "street": texts.street, "city": texts.city, "phone": texts.phone,
        "email": texts.email, "company": texts.company, "date": texts.date, "job": texts.job,
        "number": texts.number,
    }  # fmt: skip
    if rng.random() < 0.5:
        sheet.centred(
            rng.choice(("Application", "Registration form", "Order form", "Contact", "Request"))
        )
    names = rng.sample(sorted(draws), rng.randrange(3, 6))
    style = rng.choice((str.title, str.capitalize, str.upper))
    mark = rng.choice((":", ":", ""))
    fields = {name: draws[name]() for name in names}
    start = sheet.margin + max(sheet.length(style(name) + mark) for name in names) + 12
    aligned = rng.random() < 0.5
    longest = max(start + sheet.length(value) for value in fields.values())
    sheet.width = max(sheet.width, int(longest + sheet.margin))
    for name, value in fields.items():
        label = style(name) + mark
        at = start if aligned else sheet.margin + sheet.length(label) + 10
        sheet.line((sheet.margin, label), (at, value))
        if rng.random() < 0.2:
            sheet.rule()
    return _finish(sheet, "form", fields)


def code(texts: Texts, faces: tuple[str, ...]) -> Page:
    """A listing in letters of equal widths."""
    equal = tuple(face for face in faces if face in EQUAL_WIDTHS) or faces
    sheet = _sheet(texts, equal, 240, 400)
    lines = texts.listing().splitlines()
    sheet.width = max(sheet.width, int(max(map(sheet.length, lines)) + 2 * sheet.margin))
    for line in lines:
        if line.strip():
            sheet.left(line.rstrip())
    return sheet.finish("code")


def eased(texts: Texts, ease: float) -> Page:
    """Lines for the first lessons.

    At 1, each letter stands in the middle of a patch of 10 pixels, in one of a few fonts, and the
    page is not worn. With less ease, places, sizes and fonts vary more, up to those of real pages.
    """
    rng, free = texts.rng, 1 - ease
    kind = rng.choice(("words", "words", "sentence", "sentence", "numbers"))
    if kind == "words":
        text = texts.rare_words(rng.randrange(6, 40))
    elif kind == "numbers":
        text = " ".join(rng.choice((texts.number, texts.date, texts.phone, texts.email))()
                        for _ in range(rng.randrange(3, 9)))  # fmt: skip
    else:
        text = " ".join(texts.sentence() for _ in range(rng.randrange(1, 5)))
    lines = [line for line in textwrap.wrap(text, rng.randrange(16, 38)) if line][:10]
    faces = TRAINED if rng.random() < 1.5 * free else EQUAL_WIDTHS[:3]
    size = 16 + round(rng.uniform(-2, 1) * free)
    advance = 10 + rng.uniform(-2.5, 1.5) * free
    left = rng.uniform(0, 10) * free
    width = int(left + advance * max(map(len, lines))) + 1
    sheet = Sheet(width, rng.choice(faces), size, 0, rng, slack=1.5 * free)
    for line in lines:
        columns = [(left + advance * (i + 0.5), c) for i, c in enumerate(line)]
        sheet.spread.append((columns, sheet.y))
        sheet.y += PITCH
    return sheet.finish("eased", clean=ease > 0.4)


KINDS: dict[str, Callable[[Texts, tuple[str, ...]], Page]] = {
    "prose": prose, "receipt": receipt, "invoice": invoice, "table": table, "form": form,
    "code": code,
}  # fmt: skip
DRILLS = {"words": words, "numbers": numbers}
"""Kinds that nobody is asked about, to learn from."""
_MOST = 460
"""Widest page in pixels; a wider one is drawn again."""


def draw(texts: Texts, kind: str, faces: tuple[str, ...] = TRAINED) -> Page:
    """A page of a kind."""
    while True:
        page = (KINDS | DRILLS)[kind](texts, faces)
        if page.image.width <= _MOST and page.text.strip():
            return page
