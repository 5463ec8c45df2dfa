"""Rows with pictures: where they stand, what the noisy copy leaves out, and what is trained."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.reference.pictures import picture
from tests.training.runs import config_of
from trimode.checkpoints import load
from trimode.engine import generate, read_prompt
from trimode.errors import InputError
from trimode.model import GivenRows, KVCache, Segment, build_runner
from trimode.testing import (
    CHAT_TEMPLATE,
    picture_tokenizer,
    tiny_model,
    tiny_tensors,
    tiny_vision_model,
    write_tiny_vision_checkpoint,
)
from trimode.text import ChatTemplate
from trimode.training.conversations import parse_conversation
from trimode.training.data import PackedRows, read_documents, tokenise
from trimode.training.masks import PADDING, text_runs
from trimode.training.noise import NoiseConfig
from trimode.training.objective import ObjectiveConfig
from trimode.training.passes import clean_pass, noisy_pass
from trimode.training.pictures import given_rows
from trimode.training.step import BlockConfig, StepConfig, draw_task, losses
from trimode.training.trainer import Trainer

TOKENIZER = picture_tokenizer()
END = TOKENIZER.token_id("<|im_end|>")
JOINT = StepConfig(
    blocks=BlockConfig(block_length=4),
    objective=ObjectiveConfig(ar_loss_weight=1.0, diffusion_loss_weight=1.0),
    noise=NoiseConfig(eps=0.3),
)


def rows_of(*images):
    """A row for each picture, which is asked about between two texts."""
    return [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Is "}, {"type": "image"},
                                             {"type": "text", "text": " red?"}]},
                {"role": "assistant", "content": f"No, {i}."},
            ],
            "images": [image],
        }
        for i, image in enumerate(images)
    ]  # fmt: skip


def documents_of(model, rows, **options):
    found = []
    for row in rows:
        found += tokenise(
            parse_conversation(row, "row"), TOKENIZER, ChatTemplate(CHAT_TEMPLATE),
            eos_token_ids=(END,), vision=model.vision, **options,
        )  # fmt: skip
    return found


def trainable():
    """A model with plain weights."""
    model = tiny_vision_model()
    read = tiny_tensors(model.config).__getitem__
    return replace(model, runner=build_runner(model.config, read, dtype="fp32", plain=True))


@pytest.fixture(scope="module")
def model():
    return trainable()


@pytest.fixture(scope="module")
def batch(model):
    rows = rows_of(picture(1), picture(2, (8, 40)), picture(3, (32, 8)))
    return PackedRows(documents_of(model, rows), 150, 0).batch(0, 1)


def test_a_picture_stands_in_its_document_and_is_not_learned(model):
    (found,) = documents_of(model, rows_of(picture(1)))
    (part,) = found.images
    vision = model.vision
    assert found.tokens[part.span].tolist() == vision.tokens.layout(2, 3)
    text = TOKENIZER.decode([t for t in found.tokens if t < 256])
    assert text == "user\nIs  red?\nassistant\nNo, 0.\n"
    assert TOKENIZER.decode(found.tokens[found.learn]) == "No, 0."
    (every,) = documents_of(model, rows_of(picture(1)), learn_from="everything")
    assert every.learn.sum() == len(every.tokens) - len(part.layout)


def test_the_tokens_are_those_of_the_prompt_that_decoding_gives(model):
    (found,) = documents_of(model, rows_of(picture(1)))
    asked = rows_of(picture(1))[0]
    prompt = read_prompt(model, asked["messages"][:1], images=asked["images"])
    assert tuple(found.tokens[: len(prompt.tokens)]) == prompt.tokens
    assert found.images[0].start == prompt.images[0].start


def test_packed_rows_move_pictures_with_their_documents(batch, model):
    assert len(batch.images) == 3
    for part in batch.images:
        tokens = batch.tokens[part.row, part.span].tolist()
        assert tokens == model.vision.prompt_tokens(part.image)


def test_runs_are_the_text_between_pictures():
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, PADDING]])
    assert text_runs(documents, []) is documents
    runs = text_runs(documents, [(0, slice(2, 4)), (0, slice(6, 7))])[0].tolist()
    assert [run == PADDING for run in runs] == [
        False,
        False,
        True,
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert len({runs[0], runs[4], runs[5], runs[7]}) == 4
    assert runs[0] == runs[1]


@pytest.mark.parametrize("placement", ["grid", "random"])
def test_the_noisy_copy_has_the_text_and_no_token_of_a_picture(placement, batch):
    blocks = BlockConfig(block_length=4, placement=placement, noisy_tokens=64)
    task = draw_task(
        batch, StepConfig(blocks=blocks, noise=JOINT.noise), seed=0, step=0, first_row=0
    )
    inside = task.blocks.index[task.blocks.inside]
    taken = torch.zeros(150, dtype=torch.bool)
    for part in batch.images:
        taken[part.span] = True
    assert not taken[inside].any()
    if placement == "grid":
        text = (batch.documents[0] != PADDING) & ~taken
        assert sorted(inside.tolist()) == text.nonzero()[:, 0].tolist()


@torch.no_grad()
def test_noisy_blocks_see_what_a_pass_over_prompt_and_block_sees(batch, model):
    """Each block by itself, as decoding runs it: a causal prefix with pictures, then the block."""
    task = draw_task(batch, JOINT, seed=0, step=0, first_row=0)
    transformer, runner = model.transformer, model.runner
    given = given_rows(batch.images, model.vision, 150, "cpu")
    _, clean = clean_pass(transformer, batch.tokens, batch.documents, given=given)
    mask = model.config.mask_token_id
    index, inside = task.blocks.index[0], task.blocks.inside[0]
    hidden_tokens = task.noise.masked[0] | ~inside
    noisy = torch.where(hidden_tokens, torch.tensor(mask), batch.tokens[0][index])
    found = noisy_pass(transformer, noisy[None], task.blocks, batch.documents, clean)[0]
    checked = 0
    for n, start in enumerate(task.blocks.starts[0].tolist()):
        if not inside[n, 0]:
            continue
        document = batch.documents[0]
        first = int((document == document[start]).nonzero()[0, 0])
        cache = KVCache(model.config, 200, dtype=runner.kv_dtype, device="cpu")
        at = [
            int((given.rows == i).nonzero()[0, 0]) for i in range(first, start) if i in given.rows
        ]
        rows = GivenRows(given.rows[at] - first, given.embeddings[at])
        prefix = batch.tokens[0, first:start]
        if len(prefix):
            runner.run(
                prefix,
                torch.arange(len(prefix)),
                [Segment(0, len(prefix), cache, "causal")],
                None,
                rows if at else None,
            )
            cache.keep(range(len(prefix)))
        positions = torch.arange(4) + len(prefix)
        expected = runner.run(noisy[n], positions, [Segment(0, 4, cache, "block")], slice(None))
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-4)
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_reach_tower_and_projector_though_the_base_is_frozen(recompute, batch):
    model = trainable()
    model.vision.model.requires_grad_(True)
    task = draw_task(batch, JOINT, seed=0, step=0, first_row=0)
    found = losses(
        model.transformer, task, JOINT, train_base=False, recompute=recompute, vision=model.vision
    )
    assert set(found) == {"ar", "diffusion"}
    sum(loss.total for loss in found.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.vision.model.parameters())
    other = trainable()
    frozen = losses(other.transformer, task, JOINT, train_base=False, vision=other.vision)
    assert set(frozen) == {"diffusion"}
    torch.testing.assert_close(frozen["diffusion"].total, found["diffusion"].total.detach())


def test_a_block_causal_context_takes_no_pictures(batch):
    config = StepConfig(
        blocks=BlockConfig(block_length=4, context="block"),
        objective=ObjectiveConfig(ar_loss_weight=0.0, diffusion_loss_weight=1.0),
    )
    with pytest.raises(InputError, match="context: block; rows with pictures need context: causal"):
        draw_task(batch, config, seed=0, step=0, first_row=0)


@pytest.fixture
def data(tmp_path):
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    rows = rows_of(*(f"{i}.png" for i in range(3)))
    rows.append(
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    )
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data.jsonl"


def read(data, vision, **options):
    return read_documents(
        [data], TOKENIZER, ChatTemplate(CHAT_TEMPLATE), eos_token_ids=(END,), vision=vision,
        **{"max_length": 200, **options},
    )  # fmt: skip


def test_files_name_pictures_beside_them(data, model):
    found = read(data, model.vision)
    assert [len(document.images) for document in found.documents] == [1, 1, 1, 0]
    keys = [document.images[0].image.key for document in found.documents[:3]]
    expected = [model.vision.process(picture(i)).key for i in range(3)]
    assert keys == expected
    pixels = found.documents[0].images[0].image.read()
    assert np.array_equal(pixels, model.vision.process(picture(0)).read())


def test_rows_that_cannot_be_learned_are_named(data, model):
    with pytest.raises(
        InputError, match=r"line 1: messages\[0\]\.content\[1\]: a picture; the model"
    ):
        read(data, tiny_model().vision)
    with pytest.raises(InputError, match="pictures within sequence_length"):
        read(data, model.vision, max_length=12, overlong="truncate")
    (data.parent / "1.png").unlink()
    with pytest.raises(InputError, match=r"line 2: images\[0\]: .*1.png is not a file"):
        read(data, model.vision)


def test_a_run_trains_on_pictures_and_saves_the_tower_with_the_model(data, tmp_path):
    source = write_tiny_vision_checkpoint(tmp_path / "model")
    config = config_of(source, data, tmp_path / "run", steps=3)
    assert Trainer(config, progress=False).run()
    before, after = load(source, dtype="fp32"), load(tmp_path / "run" / "final", dtype="fp32")
    assert after.vision.tokens == before.vision.tokens
    for name, tensor in before.vision.model.state_dict().items():
        assert torch.equal(after.vision.model.state_dict()[name], tensor)
    answers = [
        generate(m, "Is it?", images=[picture(0)], max_tokens=8).text for m in (before, after)
    ]
    assert answers[0] != answers[1]
