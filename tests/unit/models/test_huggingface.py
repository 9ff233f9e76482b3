"""Transformers that classify text, as Hugging Face's own library saves and runs them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import safetensors.torch
import torch

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema, TextForm
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.huggingface import HuggingFace, read_folder
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.foreign.pictures import PictureClassifier
from kubestill.runtime.stores import open_store

os.environ["HF_HUB_OFFLINE"] = "1"
transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")

WORDS = "the parcel came late broken early whole again and never thank you a pity joy".split()
GOOD = {"early", "whole", "thank", "joy"}


def texts(rows: int = 120) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(rows)]


def tokenizer() -> Any:
    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small BERT that has learned a little."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        id2label={0: "good", 1: "bad"},
        label2id={"good": 0, "bad": 1},
    )
    model = transformers.BertForSequenceClassification(config)
    given, wanted = texts(), labels(texts())
    encoded = tokenizer()(given, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(30):
        right = torch.tensor([["good", "bad"].index(one) for one in wanted])
        loss = model(**encoded, labels=right).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def labels(given: list[str]) -> list[str]:
    return ["good" if GOOD & set(text.split()) else "bad" for text in given]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    frame = pd.DataFrame({"text": texts(), "title": texts()[::-1], "size": 1.0})
    frame["mood"] = labels(texts())
    schema = Schema(
        columns=(
            Column(name="size", kind="numeric"),
            Column(name="text", kind="categorical", categories=tuple(sorted(set(texts())))),
            Column(name="title", kind="categorical", categories=tuple(sorted(set(texts())))),
            Column(name="mood", kind="categorical", role="target", categories=("bad", "good")),
        ),
        task="binary",
    )
    root = str(tmp_path_factory.mktemp("rows"))
    with DatasetWriter(root, schema, provenance={}) as writer:
        writer.write(frame)
    return writer.dataset


def ask_each(folder: Path, *columns: list[str]) -> np.ndarray:
    """Return the logits as the library itself gives them, one text at a time."""
    own = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return np.vstack(
            [
                model(**own(*row, truncation=True, return_tensors="pt")).logits
                for row in zip(*columns, strict=True)
            ]
        )


@pytest.mark.parametrize(("family", "tokens"), [("Roberta", 7), ("MPNet", 6)])
def test_texts_are_cut_where_the_places_of_tokens_end(
    family: str, tokens: int, rows: Dataset, tmp_path: Path
) -> None:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,  # the first ones are for padding
        pad_token_id=0,
        id2label={0: "good", 1: "bad"},
        label2id={"good": 0, "bad": 1},
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    model.save_pretrained(tmp_path)
    plain = tokenizer()
    plain.model_max_length = int(1e30)  # as one is saved that was never told
    plain.save_pretrained(tmp_path)
    brought = bring(str(tmp_path), rows, Options(inputs=["text"]))
    assert brought
    found = brought.predictor(pd.DataFrame({"text": texts()}))[["p_good", "p_bad"]]
    given = plain(texts(), padding=True, truncation=True, max_length=tokens, return_tensors="pt")
    wanted = model(**given).logits.softmax(1).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("inputs", [["text"], ["text", "title"]], ids=["text", "pair"])
def test_a_transformer_labels_as_it_does_in_its_own_library(
    inputs: list[str], saved: Path, rows: Dataset, tmp_path: Path
) -> None:
    brought = bring(str(saved), rows, Options(inputs=inputs))
    assert brought is not None
    brought.write(str(tmp_path / "model"))
    model = load_model(str(tmp_path / "model"))
    assert model.digest == brought.predictor.digest
    block = next(rows.iter_blocks())
    found = model.logits(decode_features(block, model.layout))
    expected = ask_each(saved, *(block[name].cast("string").to_pylist() for name in inputs))
    # Its own order is good, bad; the dataset's is bad, good.
    np.testing.assert_allclose(found[:, 0], expected[:, 0] - expected[:, 1], atol=1e-5)
    if inputs == ["text"]:
        frame = pd.DataFrame({"text": block["text"].cast("string").to_pylist()})
        assert (model(frame)["prediction"] == block["mood"].to_pylist()).mean() > 0.9


def test_a_column_of_text_is_read_as_labels_are(saved: Path, rows: Dataset, tmp_path: Path) -> None:
    schema = rows.schema
    as_text = {name: TextForm(length=8) for name in ("text", "title")}
    columns = tuple(
        Column(name=c.name, kind="text", text=as_text[c.name]) if c.name in as_text else c
        for c in schema.columns
    )
    with DatasetWriter(str(tmp_path / "rows"), replace(schema, columns=columns)) as writer:
        writer.write(rows.to_table())
    found: list[np.ndarray] = []
    for dataset in (rows, writer.dataset):
        brought = bring(str(saved), dataset, Options(inputs=["text", "title"]))
        assert brought is not None
        block = next(dataset.iter_blocks())
        found.append(brought.predictor.logits(decode_features(block, brought.predictor.layout)))
    np.testing.assert_array_equal(found[0], found[1])


def test_the_same_folder_is_the_same_model(saved: Path, rows: Dataset, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("what nobody loads")
    first, second = (
        bring(str(folder), rows, Options(inputs=["text"])) for folder in (saved, tmp_path / "copy")
    )
    assert first is not None
    assert second is not None
    assert first.content == second.content


@pytest.fixture(scope="module")
def sentence(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same BERT as a sentence model with a head."""
    folder = tmp_path_factory.mktemp("sentence")
    transformers.BertModel.from_pretrained(saved).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    names = ("Transformer", "Pooling", "Normalize", "Dense", "Dense")
    kinds = [f"sentence_transformers.models.{name}" for name in names]
    paths = ["", *(f"{at}_{name}" for at, name in enumerate(names[1:], 1))]
    parts = [
        {"idx": at, "name": str(at), "path": path, "type": kind}
        for at, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    write(folder / "modules.json", parts)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": False})
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    torch.manual_seed(1)
    for path, sizes, name in (("3_Dense", (16, 8), "Tanh"), ("4_Dense", (8, 2), "Identity")):
        said = "torch.nn.modules.activation." + name
        write(folder / path / "config.json", {"activation_function": said, "bias": True})
        weights = {f"linear.{n}": one for n, one in torch.nn.Linear(*sizes).state_dict().items()}
        safetensors.torch.save_file(weights, folder / path / "model.safetensors")
    return folder


def write(path: Path, form: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(form))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_sentence_model_with_a_head_is_a_teacher(
    pooling: str, sentence: Path, rows: Dataset, tmp_path: Path
) -> None:
    folder = shutil.copytree(sentence, tmp_path / "sentence")
    told = {"pooling_mode": pooling} if pooling == "cls" else {f"pooling_mode_{pooling}_tokens": 1}
    write(folder / "1_Pooling" / "config.json", told)
    brought = bring(str(folder), rows, Options(inputs=["text"], classes=["good", "bad"]))
    assert brought is not None
    brought.write(str(tmp_path / "model"))
    model = load_model(str(tmp_path / "model"))
    block = next(rows.iter_blocks())
    found = model.logits(decode_features(block, model.layout))
    own = transformers.AutoTokenizer.from_pretrained(folder)
    body = transformers.BertModel.from_pretrained(folder).eval()
    layers = [
        safetensors.torch.load_file(folder / f"{at}_Dense/model.safetensors") for at in (3, 4)
    ]
    wanted: list[float] = []
    with torch.no_grad():
        for text in block["text"].cast("string").to_pylist():
            tokens = own(text, truncation=True, max_length=6, return_tensors="pt")
            hidden = body(**tokens).last_hidden_state[0]
            pooled = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[pooling]
            pooled = pooled / pooled.norm()
            for weights, after in zip(layers, (torch.tanh, lambda x: x), strict=True):
                pooled = after(weights["linear.weight"] @ pooled + weights["linear.bias"])
            wanted.append(float(pooled[0] - pooled[1]))
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-5)


def without_head(folder: Path) -> None:
    parts = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", parts[:3])


def no_logits(folder: Path) -> None:
    write(folder / "4_Dense" / "config.json", {"activation_function": "torch.nn.Sigmoid"})


def weighted(folder: Path) -> None:
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_weightedmean_tokens": True})


def own_part(folder: Path) -> None:
    parts = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [*parts, parts[0] | {"type": "evil.models.Layer"}])


def cut_head(folder: Path) -> None:
    path = folder / "4_Dense" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_head, "gives embeddings; a teacher ends in a head"),
        (no_logits, "gives embeddings; a teacher ends in a head"),
        (weighted, "use one of cls, mean, max"),
        (own_part, "modules = 'Layer'"),
        (cut_head, "no whole layer of a sentence model"),
    ],
)
def test_a_sentence_model_that_does_not_classify_is_refused(
    spoil: Callable[[Path], None], said: str, sentence: Path, rows: Dataset, tmp_path: Path
) -> None:
    folder = shutil.copytree(sentence, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises((InvalidInput, CorruptData), match=said):
        bring(str(folder), rows, Options(inputs=["text"], classes=["good", "bad"]))


def test_batches_share_the_threads_of_labelling(saved: Path, rows: Dataset, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        brought = bring(str(saved), rows, Options(inputs=["text"]))
        assert brought is not None
        made = label([TeacherCopy(brought.predictor)], rows, str(tmp_path / "labelled")).to_pandas()
    finally:
        torch.set_num_threads(before)
    found = np.stack(list(made["teacher_logits"]))
    raw = decode_features(next(rows.iter_blocks()), brought.predictor.layout)
    np.testing.assert_allclose(found, brought.predictor.logits(raw), atol=1e-5)


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small ViT."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=12,
        patch_size=4,
        id2label={0: "round", 1: "flat", 2: "odd"},
        label2id={"round": 0, "flat": 1, "odd": 2},
    )
    transformers.ViTForImageClassification(config).eval().save_pretrained(folder)
    processor = transformers.ViTImageProcessorPil(size={"height": 12, "width": 12})
    processor.save_pretrained(folder)
    return folder


def pictures(folder: Path, channels: int, *, pixels: bool = True) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (70, channels, 8, 10)).astype(np.uint8)
    frame = pd.DataFrame({"image": list(images), "kind": ["flat", "odd", "round"] * 23 + ["odd"]})
    classes = ("flat", "odd", "round")
    schema = Schema(
        columns=(
            Column(name="image", kind="tensor", shape=(channels, 8, 10), pixels=pixels),
            Column(name="kind", kind="categorical", role="target", categories=classes),
        ),
        task="multiclass",
    )
    with DatasetWriter(str(folder), schema) as writer:
        writer.write(frame)
    return writer.dataset


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_of_images_labels_as_in_its_own_library(
    channels: int, vision: Path, tmp_path: Path
) -> None:
    dataset = pictures(tmp_path / "rows", channels)
    brought = bring(str(vision), dataset, Options(inputs=["image"]))
    assert brought is not None
    brought.write(str(tmp_path / "model"))
    found = label(
        [TeacherCopy(load_model(str(tmp_path / "model")))], dataset, str(tmp_path / "soft")
    ).to_pandas()
    own = transformers.AutoImageProcessor.from_pretrained(vision, backend="pil")
    model = transformers.AutoModelForImageClassification.from_pretrained(vision).eval()
    for image, logits in zip(found["image"], found["teacher_logits"], strict=True):
        bytes_ = np.asarray(image).reshape(channels, 8, 10).astype(np.uint8)
        rgb = np.broadcast_to(bytes_, (3, 8, 10)).transpose(1, 2, 0)
        with torch.no_grad():
            wanted = model(**own(PIL.Image.fromarray(rgb.copy()), return_tensors="pt")).logits[0]
        # Its own order is round, flat, odd.
        np.testing.assert_allclose(logits, wanted[[1, 2, 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "pixels", "spoil", "said"),
    [
        (2, True, None, "it reads 3 channels; 'image' has 2"),
        (3, False, None, "reads images of bytes"),
        (3, True, "preprocessor_config.json", "says how images are resized and scaled, and is"),
    ],
)
def test_images_that_a_model_does_not_read_are_refused(
    channels: int, pixels: bool, spoil: str | None, said: str, vision: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(vision, tmp_path / "vit")
    if spoil:
        (folder / spoil).unlink()
    with pytest.raises(InvalidInput, match=said):
        bring(str(folder), pictures(tmp_path / "rows", channels, pixels=pixels), IMAGE)


IMAGE = Options(inputs=["image"])


def change(**fields: Any) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        form = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(form | fields))

    return work


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def other_names(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["of.another"] = weights.pop("classifier.bias")
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_padding(folder: Path) -> None:
    form = json.loads((folder / "tokenizer_config.json").read_text())
    form.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(form))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, "holds no weights in safetensors"),
        (cut, "transformers cannot load it"),
        (other_names, "its weights are those of another model; missing_keys"),
        (change(hidden_size=1 << 20), "asks for more than 36,700,160 numbers"),
        (change(num_hidden_layers=10**9), "claims 1,000,000,000 layers"),
        (change(architectures=["BertForMaskedLM"]), "only ...ForSequenceClassification"),
        (change(auto_map={"AutoModel": "evil.Model"}), "code of its own"),
        (change(problem_type="multi_label_classification"), "several of its labels"),
        (change(model_type="nobody-knows"), "cannot load it"),
        (change(id2label={"0": "good", "1": "fair"}), "is no class of the dataset"),
        (without_padding, "filled up"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    spoil: Callable[[Path], None], said: str, saved: Path, rows: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises((InvalidInput, CorruptData), match=said):
        bring(str(tmp_path / "spoilt"), rows, Options(inputs=["text"]))


def twice(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (twice, "is in another file, too"),
        (change(num_labels=10**9), "num_labels 1000000000 is no number of classes"),
        (change(vision_config={"num_labels": 10**9}), "is no number of classes"),
        (change(model_type="qwen2", num_hidden_layers=10**9), "claims 1,000,000,000 layers"),
        (change(model_type="swin", depths=[10**9, 1]), "claims 1,000,000,001 layers"),
        (change(attn_implementation="evil/kernel"), "may be code from elsewhere"),
        (change(_attn_implementation="evil/kernel"), "may be code from elsewhere"),
        (change(use_pretrained_backbone=True), "takes weights from elsewhere"),
        (change(model_type="timm_wrapper"), "is built by timm"),
        (change(quantization_config={"quant_method": "gptq"}), "in few bits"),
        (change(architectures=5), "architectures: Input should be"),
        (change(architectures={"0": 1}), "architectures: Input should be"),
    ],
)
def test_a_configuration_loads_nothing_else_and_fills_no_memory(
    spoil: Callable[[Path], None], said: str, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    store = open_store(str(tmp_path / "spoilt"))
    content = read_folder(store, [one.key for one in store.list()], "spoilt")
    with pytest.raises(CorruptData, match=said):
        HuggingFace(content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 50_000),
        ("size", {"shortest_edge": 50_000}),
        ("size", {"height": 0, "width": 12}),
        ("crop_size", {"height": 50_000, "width": 12}),
        ("pad_size", {"height": 12, "width": 50_000}),
        ("crop_pct", 1e-4),
        ("max_num_patches", 10**8),
        ("patch_size", 2_000),
    ],
)
def test_images_are_not_made_to_fill_the_memory(
    name: str, value: Any, vision: Path, tmp_path: Path
) -> None:
    shutil.copytree(vision, tmp_path / "spoilt")
    path = tmp_path / "spoilt" / "preprocessor_config.json"
    write(path, json.loads(path.read_text()) | {name: value})
    store = open_store(str(tmp_path / "spoilt"))
    content = read_folder(store, [one.key for one in store.list()], "spoilt")
    with pytest.raises(CorruptData, match="images would fill the memory"):
        PictureClassifier(content)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "the file does not name its inputs; list the columns"),
        (["size"], "the model reads text, and this is not text"),
        (["txet"], "did you mean 'text'"),
    ],
)
def test_columns_are_named_and_hold_text(
    inputs: list[str], said: str, saved: Path, rows: Dataset
) -> None:
    with pytest.raises(InvalidInput, match=said):
        bring(str(saved), rows, Options(inputs=inputs))
