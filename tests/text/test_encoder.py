import dataclasses
import functools
import json
import logging
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import llamagen_jax as lg
from llamagen_jax import sharding
from llamagen_jax.errors import InputError
from llamagen_jax.text.captions import clean
from llamagen_jax.text.tokenizer import T5Tokenizer, tokenize_caption
from llamagen_jax.weights import t5 as t5_weights

pytest.importorskip("ftfy")
sentencepiece_model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

LENGTH = 12
CONFIG = tiny.T5_CONFIG
CAPTIONS = ["A red circle", "a small blue square left of a large green triangle", "", "ünïcödé 图"]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    return tiny.write_spiece(tmp_path_factory.mktemp("spiece"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, spiece):
    return tiny.write_t5(tmp_path_factory.mktemp("encoder") / "tiny-t5", spiece)


@pytest.fixture(scope="module")
def encoder(folder):
    return lg.TextEncoder.load(folder, dtype="float32", length=LENGTH, batch_size=3)


def test_tokens_are_those_of_transformers(spiece, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "spiece.model").write_bytes(spiece.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), T5Tokenizer(spiece)
    captions = tiny.varied_captions(1000)
    tokens, mask = ours(captions, 120)
    expected = theirs(
        captions, max_length=120, padding="max_length", truncation=True, return_tensors="np"
    )
    for row, caption in enumerate(captions):
        valid = expected["input_ids"][row][expected["attention_mask"][row] == 1]
        np.testing.assert_array_equal(tokens[row][mask[row]], valid, err_msg=repr(caption))
    lengths = mask.sum(axis=1)
    assert lengths.min() == 1 and lengths.max() == 120
    assert (tokens == ours.vocab_size - 1).any() and (tokens == 2).any()
    assert ours.vocab_size == len(theirs)


def test_tokens_are_padded_on_the_left_and_end_with_the_end_token(spiece):
    tokens, mask = T5Tokenizer(spiece)(["a red circle", ""], 10)
    assert tokens.dtype == np.int32 and tokens.shape == mask.shape == (2, 10)
    assert np.all(tokens[:, -1] == 1) and np.all(tokens[~mask] == 0)
    assert np.all(np.diff(mask.astype(int), axis=1) >= 0)
    assert mask[1].sum() == 1


def test_longer_captions_are_cut_and_named(spiece, caplog):
    tokenizer, long = T5Tokenizer(spiece), "a red circle left of a blue square"
    whole, mask = tokenizer([long], 50)
    count = mask.sum()
    with caplog.at_level(logging.WARNING, "absl"):
        tokenizer([long], count)
        assert not caplog.records
        tokens, mask = tokenizer([long, "a cat"], count - 1)
    assert f"cut to {count - 1} tokens: '{long}' ({count} tokens)" in caplog.text
    assert "cat" not in caplog.text
    np.testing.assert_array_equal(tokens[0, :-1], whole[0, -count:-2])
    assert tokens[0, -1] == 1 and mask[0].all()


def test_captions_are_tokenized_one_by_one(spiece):
    tokenizer = T5Tokenizer(spiece)
    row = pickle.loads(pickle.dumps(functools.partial(tokenize_caption, tokenizer, 10)))("A CAT")
    tokens, mask = tokenizer(["a cat"], 10)
    np.testing.assert_array_equal(row["tokens"], tokens[0])
    np.testing.assert_array_equal(row["mask"], mask[0])
    with pytest.raises(ValueError, match=r"caption '\.\.\.' is empty once cleaned"):
        tokenize_caption(tokenizer, 10, "...")


def test_features_of_captions(encoder):
    features, mask = encoder.encode(CAPTIONS)
    assert features.shape == (4, LENGTH, 16) and mask.shape == (4, LENGTH)
    assert np.all(features[~mask] == 0) and np.all(np.any(features[mask] != 0, axis=-1))
    assert encoder.batch_size == 8  # 3, rounded up to the devices
    tokens, expected_mask = encoder.tokenizer([clean(c) for c in CAPTIONS], LENGTH)
    np.testing.assert_array_equal(mask, expected_mask)
    valid = mask[0]  # alone and without padding
    alone = jax.jit(encoder.model.apply)(
        {"params": encoder.params}, tokens[:1, valid], valid[None, valid]
    )
    np.testing.assert_allclose(features[0, valid], alone[0], rtol=0, atol=1e-5)


def test_features_do_not_depend_on_the_batch(encoder):
    captions = [f"{i} cats" for i in range(19)]
    features, mask = encoder.encode(captions)
    last, last_mask = encoder.encode(captions[-1:])
    np.testing.assert_allclose(features[-1:], last, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mask[-1:], last_mask)
    assert encoder.encode([])[0].shape == (0, LENGTH, 16)


def test_features_do_not_depend_on_the_mesh(encoder, folder):
    mesh = sharding.make_mesh(2, 2, 2)
    split = lg.TextEncoder.load(folder, dtype="float32", length=LENGTH, mesh=mesh)
    kernel = split.params["layers"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    features, _ = split.encode(CAPTIONS)
    np.testing.assert_allclose(features, encoder.encode(CAPTIONS)[0], rtol=0, atol=1e-5)


def test_bfloat16_is_the_default(encoder, folder):
    half = lg.TextEncoder.load(folder, length=LENGTH)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    features, mask = half.encode(CAPTIONS)
    assert features.dtype == jnp.bfloat16
    expected = encoder.encode(CAPTIONS)[0][mask]
    error = np.sqrt(np.mean((features[mask].astype(np.float32) - expected) ** 2))
    assert 0 < error < 0.03 * expected.std()


def test_features_are_those_of_the_original_procedure(encoder, folder):
    """Encode padded on the right, then move the padding to the left and multiply by the mask."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder)
    model = transformers.T5EncoderModel(
        transformers.T5Config(**t5_weights.config_fields(CONFIG))
    ).eval()
    state = {name: torch.from_numpy(t) for name, t in tiny.t5_tensors().items()}
    model.load_state_dict(state | {"encoder.embed_tokens.weight": state["shared.weight"]})
    batch = tokenizer(
        [clean(c) for c in CAPTIONS],
        max_length=LENGTH,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    assert tokenizer.padding_side == "right"
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state.numpy()
    features, mask = encoder.encode(CAPTIONS)
    for row, count in enumerate(batch["attention_mask"].numpy().sum(axis=1)):
        assert mask[row].sum() == count
        moved = np.roll(hidden[row], -count, axis=0) * mask[row][:, None]
        np.testing.assert_allclose(features[row], moved, rtol=0, atol=1e-4)


def _without(name):
    return lambda folder: (folder / name).unlink()


def _config(**changes):
    def change(folder):
        fields = t5_weights.config_fields(CONFIG) | changes
        kept = {key: value for key, value in fields.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def _index(text):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def _garbage(name):
    return lambda folder: (folder / name).write_bytes(b"garbage")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("config.json"), r"config\.json is missing"),
        (_without("spiece.model"), r"spiece\.model is missing"),
        (_without("model.safetensors"), r"holds no weights; expected model\.safetensors or"),
        (_config(model_type="bert"), r"describes a model 'bert'; expected 't5'"),
        (_config(d_ff=None), r"has no entry 'd_ff'"),
        (_config(d_ff="wide"), r"describes an impossible encoder"),
        (_config(feed_forward_proj="gated-silu"), r"impossible encoder: activation='gated-silu'"),
        (
            _config(d_model=17),
            r"weights in .*t5 do not fit its config\.json: .* shared\.weight \[512, 16\] inst",
        ),
        (_garbage("spiece.model"), r"spiece\.model is damaged or no sentencepiece model"),
        (_garbage("model.safetensors"), r"model\.safetensors is truncated"),
        (_index("{}"), r"index\.json is damaged or no index"),
        (_index('{"weight_map": {"x": "b.safetensors"}}'), r"b\.safetensors is missing; model"),
        (_index('{"weight_map": {"x": "../t5/a.safetensors"}}'), r"a\.safetensors is missing"),
        (_index('{"weight_map": {"x": "a.safetensors"}}'), r"a\.safetensors lacks .* lists: x"),
    ],
)
def test_damaged_folders_are_refused(damage, message, spiece, tmp_path):
    folder = tiny.write_t5(tmp_path / "t5", spiece)
    damage(folder)
    with pytest.raises(InputError, match=message):
        lg.TextEncoder.load(folder)


def test_tokenizer_of_another_encoder_is_refused(spiece):
    tokenizer = T5Tokenizer(spiece)
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size - 1)
    with pytest.raises(InputError, match=r"the tokenizer has \d+ tokens, the encoder only \d+"):
        lg.TextEncoder(config, [], tokenizer)


def test_sentencepiece_model_of_another_kind_is_refused(spiece, tmp_path):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(spiece.read_bytes())
    model.pieces[1].piece = "<end>"
    (tmp_path / "other.model").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"other\.model is not T5's: its first tokens are not"):
        T5Tokenizer(tmp_path / "other.model")


def test_missing_folder_and_impossible_sizes_are_refused(folder):
    with pytest.raises(InputError, match=r"nowhere is no folder"):
        lg.TextEncoder.load("nowhere")
    with pytest.raises(InputError, match=r"batch_size=0"):
        lg.TextEncoder.load(folder, batch_size=0)
    with pytest.raises(InputError, match=r"dtype='float16' must be one of"):
        lg.TextEncoder.load(folder, dtype="float16")
