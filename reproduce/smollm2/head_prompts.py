"""User turns for the draft head's data: more of `prompts.py`, and requests of many kinds.

    python reproduce/smollm2/head_prompts.py --data data --output head_prompts.jsonl
    trimode train-head smollm2-135m-instruct --data head.jsonl --conversations 2900
        --prompts head_prompts.jsonl --sampled-share 0.4 --answer-tokens 224 --inner 1536
        --epochs 4 -o DIR

Requests are made of lists of topics and forms, so that the answers are of many kinds; texts to
summarise or to translate are GSM8K's training questions, code to edit is of MBPP's tasks that are
not scored.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from reproduce.smollm2 import prompts

TOPICS = """\
the sea;bicycles;photosynthesis;a haunted lighthouse;electric cars;learning the piano;the French
Revolution; bees;black holes;a lost dog;remote work;coffee;the water cycle;chess;a dragon who
cannot fly;budget travel in Japan; stress at work;volcanoes;blockchain;a robot gardener;the Roman
Empire;healthy breakfasts;jazz;gardening in small spaces; climate change;the human heart;sleep;a
broken clock;solar panels;public libraries;mountain climbing;recycling;the moon landing;online
privacy;sourdough bread;penguins;time management;a village in winter;machine
learning;vaccines;poetry;job interviews;trains;medieval castles;football;yoga;antibiotics;the
printing press;tides;a talking cat;inflation;databases; unit
tests;refactoring;HTTP;recursion;sorting algorithms;linked lists;regular expressions;neural
networks;version control;whales;rainforests;earthquakes;friendship;a detective in Venice;space
tourism;the stock market;renewable energy; childhood memories;the desert at night;street
food;board games;museums;dancing;rivers;the immune system;gravity;DNA; democracy;the Silk
Road;artificial intelligence;electric guitars;winter sports;marketing a small shop;customer
complaints;moving to a new city;insects;camping;glaciers;weddings;night trains;tea;ancient
Egypt;quantum computers; honesty;knitting;thunderstorms;cats;fractions;triangles;probability"""
FORMS = """\
Write a short story about {t}.;Explain {t} to a ten-year-old.;Write a poem about {t}.;List ten
facts about {t}.; What are the advantages and disadvantages of {t}?;Write an email to a colleague
about {t}.;Give me five tips about {t}.; Write a dialogue between two friends about {t}.;Act as a
teacher and introduce {t} to your class.;Pretend you are an expert on {t}. What is the most common
mistake people make?;Write a product description related to {t}.;Compare {t} with {u}.;Write a
blog post about {t}.;Summarize what is known about {t} in three sentences.;Make a table about
{t}.;How did {t} change over the last hundred years?;Write a headline and a first paragraph for a
news article about {t}.;You are a travel guide. Talk about {t} and {u}.;Write a letter of
recommendation that mentions {t}.;What questions would you ask in an interview about {t}?;Write a
JSON object that describes {t} with five fields.;Write a song about {t} and {u}.;Describe {t}
without using the word itself.;Give step-by-step instructions for a beginner interested in
{t}.;Write a speech about {t} for a school event.;What would happen if {t} disappeared? Think step
by step.;Roleplay: you are a pirate. Tell me about {t}.; Write a tweet about {t}.;Create a quiz
with five questions and answers about {t}.;Who are the most important people in the history of
{t}?;Write an HTML page about {t}.;Write a markdown outline for a book about {t}.;Is {t}
important? Argue for and against.;Translate to French: "I would like to learn more about {t} and
{u}.";Translate to German: "My sister often talks about {t}.";Translate to Spanish: "{t} and {u}
are my favourite subjects."
"""
CODE_FORMS = """\
Write a Python function that {t}.;Write a JavaScript function that {t}.;Write a program in C++
that {t}.; Write unit tests in Python for a function that {t}.;Explain how you would write code
that {t}.;Write a Java method that {t}.;Write a Python class that {t} and show how to use it.;Fix
the bug: a function that {t} returns None. Show the corrected Python code."""
CODE_TASKS = """\
reverses the words of a sentence;finds the longest palindrome in a string;merges two sorted
lists;counts the vowels in a text;computes the Fibonacci numbers;checks whether a number is
prime;parses a CSV line;removes duplicates from a list;converts Celsius to Fahrenheit;finds the
second largest number;computes the factorial;flattens a nested list;implements a stack;implements
a queue with two stacks;validates an email address;finds the shortest path in a grid;groups words
by their first letter;rotates a matrix;computes the median;implements binary search;caches results
of a slow call;reads a file and counts its lines;sorts dictionaries by a key;generates a random
password;converts a number to Roman numerals;checks whether brackets are balanced;computes a
moving average;finds all pairs with a given sum;transposes a table;formats a date"""
TEXT_TASKS = """\
Rewrite this in other words:;Translate to French:;Translate to German:;Summarize in one
sentence:;Extract all numbers from this text as a list:;Turn this into a poem:;Who is mentioned in
this text, and what do they do?;Correct the grammar:;Make this text more formal:;Turn this text
into bullet points:;Write the same story from another person's view:"""
EDITS = """\
Add type hints and a docstring:;Explain this code:;Rename the function and return the whole
code:;Translate this code to JavaScript:;Write tests for this code:;Add error handling to this
code:"""
FORMS_A_TOPIC = 14
SHARES = {"gsm8k": 1500, "flan": 1800}
LONGEST = 900
"""Characters of a prompt."""


def listed(text: str) -> list[str]:
    """The parts of a list above."""
    return [part.strip() for part in text.replace("\n", " ").split(";")]


def requests(data: Path, draw: random.Random) -> Iterator[str]:
    """Requests of many kinds."""
    topics = listed(TOPICS)
    for topic in topics:
        for form in draw.sample(listed(FORMS), FORMS_A_TOPIC):
            yield form.format(t=topic, u=draw.choice(topics))
    for task in listed(CODE_TASKS):
        yield from (form.format(t=task) for form in listed(CODE_FORMS))
    questions = list(prompts.gsm8k(data))
    draw.shuffle(questions)
    for i, question in enumerate(questions[2500:4000]):
        tasks = listed(TEXT_TASKS)
        yield f"{tasks[i % len(tasks)]}\n{question}"
    rows = prompts.rows(prompts.data_file(data, "mbpp/mbpp.jsonl"))
    unscored = [row for row in rows if row["task_id"] not in prompts.SCORED_MBPP]
    for i, row in enumerate(unscored):
        for k in (0, 1):
            edit = listed(EDITS)[(i + 3 * k) % 6]
            yield edit + "\n" + row["code"].replace("\r\n", "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw = random.Random(1)
    found = list(requests(arguments.data, draw))
    for source in (prompts.gsm8k, prompts.mbpp, prompts.seeds, prompts.flan):
        texts = list(source(arguments.data))
        draw.shuffle(texts)
        found += texts[: SHARES.get(source.__name__, len(texts))]
    found = [text for text in found if len(text) < LONGEST]
    draw.shuffle(found)
    lines = (json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in found)
    arguments.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(found)} prompts")


if __name__ == "__main__":
    main()
