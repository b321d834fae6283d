"""Checkpoint folders that lie about their networks: one line each, and nothing is allocated."""

import json
import resource

import numpy as np
import pytest
from checkpoints import NETWORKS, write_network, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jax3d import weights
from jax3d.nn import clip_text, tokenizer, unet, vae
from jax3d.priors import embedded, ldm, mvdream, schedulers
from jax3d.weights import WeightsError

HUGE = 10**12
LOADERS = {"unet": unet.load, "vae": vae.load, "text_encoder": clip_text.load}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sd15")
    return {part: write_network(root, "sd15", part) for part in LOADERS}


@pytest.fixture(autouse=True)
def _little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # KiB


def refused(load, *args):
    with pytest.raises(ValueError, match=r".") as caught:
        load(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("part", "changes", "name"), [
    ("unet", {"cross_attention_dim": HUGE}, "cross_attention_dim"),
    ("unet", {"cross_attention_dim": -8}, "cross_attention_dim"),
    ("unet", {"cross_attention_dim": "24"}, "cross_attention_dim"),
    ("unet", {"in_channels": HUGE}, "in_channels"),
    ("unet", {"in_channels": 4.0}, "in_channels"),
    ("unet", {"in_channels": None}, "in_channels"),
    ("unet", {"block_out_channels": [HUGE, HUGE]}, "block_out_channels"),
    ("unet", {"block_out_channels": [32] * 40}, "block_out_channels"),
    ("unet", {"block_out_channels": 32}, "block_out_channels"),
    ("unet", {"block_out_channels": []}, "block_out_channels"),
    ("unet", {"block_out_channels": [32, 64, 64]}, "down_block_types has 2 entries"),
    ("unet", {"block_out_channels": [[32], [64]]}, "block_out_channels"),
    ("unet", {"block_out_channels": [32] * 12, "down_block_types": ["DownBlock2D"] * 12,
              "up_block_types": ["UpBlock2D"] * 12}, "12 levels"),
    ("unet", {"block_out_channels": [30, 50]}, "config.json"),
    ("unet", {"down_block_types": ["DownBlock2D"] * 3}, "down_block_types"),
    ("unet", {"down_block_types": [["DownBlock2D"], 3]}, "config.json"),
    ("unet", {"down_block_types": 7}, "config.json"),
    ("unet", {"layers_per_block": 10**6}, "layers_per_block"),
    ("unet", {"layers_per_block": True}, "layers_per_block"),
    ("unet", {"transformer_layers_per_block": [1] * 30}, "transformer_layers_per_block"),
    ("unet", {"transformer_layers_per_block": 10**5}, "transformer_layers_per_block"),
    ("unet", {"attention_head_dim": 0}, "config.json"),
    ("unet", {"attention_head_dim": [4]}, "attention_head_dim has 1 entries"),
    ("unet", {"norm_num_groups": 0}, "config.json"),
    ("unet", {"norm_num_groups": 7}, "config.json"),
    ("unet", {"norm_eps": "small"}, "norm_eps"),
    ("unet", {"norm_eps": float("nan")}, "norm_eps"),
    ("unet", {"sample_size": HUGE}, "sample_size"),
    ("unet", {"sample_size": 0}, "sample_size"),
    ("unet", {"sample_size": None}, "sample_size"),
    ("unet", {"act_fn": "explode"}, "explode"),
    ("unet", {"act_fn": ["silu"]}, "act_fn"),
    ("unet", {"class_embed_type": ["projection"]}, "class_embed_type"),
    ("unet", {"class_embed_type": "projection",
              "projection_class_embeddings_input_dim": HUGE}, "input_dim"),
    ("unet", {"addition_embed_type": "text_time"}, "config.json"),
    ("unet", {"num_class_embeds": HUGE}, "num_class_embeds"),
    ("unet", {"parent": 3}, ""),
    ("vae", {"block_out_channels": [8] * 40}, "block_out_channels"),
    ("vae", {"block_out_channels": [8] * 12}, "12 levels"),
    ("vae", {"block_out_channels": []}, "0 levels"),
    ("vae", {"latent_channels": HUGE}, "latent_channels"),
    ("vae", {"latent_channels": "4"}, "latent_channels"),
    ("vae", {"layers_per_block": 10**6}, "layers"),
    ("vae", {"scaling_factor": float("inf")}, "scaling_factor"),
    ("vae", {"scaling_factor": "0.1"}, "scaling_factor"),
    ("vae", {"norm_num_groups": 5}, "config.json"),
    ("vae", {"down_block_types": 5}, "config.json"),
    ("text_encoder", {"vocab_size": HUGE}, "vocab_size"),
    ("text_encoder", {"hidden_size": HUGE}, "hidden_size"),
    ("text_encoder", {"num_hidden_layers": 10**5}, "layers"),
    ("text_encoder", {"num_hidden_layers": "3"}, "num_hidden_layers"),
    ("text_encoder", {"num_attention_heads": 0}, "config.json"),
    ("text_encoder", {"num_attention_heads": 5}, "config.json"),
    ("text_encoder", {"max_position_embeddings": 0}, "positions"),
    ("text_encoder", {"hidden_act": ["gelu"]}, "config.json"),
    ("text_encoder", {"architectures": [5]}, "config.json"),
    ("text_encoder", {"architectures": 5}, "config.json"),
    ("text_encoder", {"eos_token_id": [2]}, "eos_token_id"),
])  # fmt: skip
def test_lying_configs(tmp_path, folders, part, changes, name):
    if changes == {"parent": 3}:  # flax's own fields are nobody's to set
        assert unet.from_config(NETWORKS["sd15"]["unet"]["config"] | changes).parent is None
        return
    (tmp_path / "config.json").write_text(json.dumps(NETWORKS["sd15"][part]["config"] | changes))
    message = refused(LOADERS[part], tmp_path)
    assert str(tmp_path / "config.json") in message
    assert name in message


@pytest.mark.parametrize(("part", "changes"), [
    ("unet", {"cross_attention_dim": 1 << 20}),
    ("vae", {"latent_channels": 1 << 20}),
    ("text_encoder", {"vocab_size": 1 << 20, "hidden_size": 1 << 20}),
])  # fmt: skip
def test_widths_that_the_file_does_not_have(tmp_path, folders, part, changes):
    """Terabytes, by the config; the file's header is looked at first."""
    for path in folders[part].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(NETWORKS["sd15"][part]["config"] | changes))
    assert "misshapen" in refused(LOADERS[part], tmp_path)


MVDREAM = NETWORKS["mvdream"]["unet"]["config"]


@pytest.mark.parametrize(("changes", "name"), [
    ({"model_channels": "a"}, "model_channels"),
    ({"model_channels": HUGE}, "model_channels"),
    ({"channel_mult": [HUGE]}, "channel_mult"),
    ({"channel_mult": 2}, "channel_mult"),
    ({"channel_mult": [1] * 40}, "channel_mult"),
    ({"attention_resolutions": None}, "attention_resolutions"),
    ({"num_head_channels": 0}, "ZeroDivisionError"),
    ({"num_res_blocks": 10**6}, "layers_per_block"),
    ({"context_dim": 1.5}, "context_dim"),
    ({"ip_dim": 16}, "ImageDream"),
])  # fmt: skip
def test_lying_mvdream_configs(tmp_path, changes, name):
    write_network(tmp_path, "mvdream", "unet")
    (tmp_path / "unet" / "config.json").write_text(json.dumps(MVDREAM | changes))
    message = refused(mvdream.open, tmp_path)
    assert str(tmp_path) in message
    assert name in message


@pytest.mark.parametrize("missing", sorted(set(MVDREAM) - {"transformer_depth", "camera_dim"}))
def test_incomplete_mvdream_configs(missing):
    config = {name: value for name, value in MVDREAM.items() if name != missing}
    if not missing.startswith("_"):
        with pytest.raises(KeyError, match=missing):
            ldm.unet_config(config)


def test_single_files_that_are_not_mvdream(tmp_path):
    path = tmp_path / "model.safetensors"
    for name in ("model.diffusion_model.camera_embed.0.weight", "something"):
        save_file({name: np.zeros((4, 4), np.float16)}, path)
        assert str(path) in refused(mvdream.open, path)


@pytest.mark.parametrize(("config", "name"), [
    ({"num_train_timesteps": HUGE}, "num_train_timesteps"),
    ({"num_train_timesteps": 10**6}, "num_train_timesteps"),
    ({"num_train_timesteps": 1}, "num_train_timesteps"),
    ({"num_train_timesteps": -1}, "num_train_timesteps"),
    ({"num_train_timesteps": "1000"}, "num_train_timesteps"),
    ({"num_train_timesteps": 1000.0}, "num_train_timesteps"),
    ({"beta_end": 2.0}, "beta_end"),
    ({"beta_start": -0.1}, "beta_start"),
    ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start"),
    ({"beta_end": float("nan")}, "beta_end"),
    ({"beta_end": "0.01"}, "beta_end"),
    ({"trained_betas": [2.0, 0.1]}, "trained_betas"),
    ({"trained_betas": [0.1]}, "trained_betas"),
    ({"trained_betas": ["0.1", 0.1]}, "trained_betas"),
    ({"trained_betas": 0.1}, "trained_betas"),
    ({"beta_schedule": ["linear"]}, "beta_schedule"),
    ({"beta_schedule": "laplace"}, "beta_schedule"),
    ({"prediction_type": ["epsilon"]}, "prediction_type"),
    ({"prediction_type": "flow_prediction"}, "prediction_type"),
    ({"steps_offset": -1}, "steps_offset"),
    ({"sigma_min": -1.0}, "sigma_min"),
    ({"use_flow_sigmas": True}, "use_flow_sigmas"),
    ({"timestep_type": "continuous"}, "timestep_type"),
    *(({"_class_name": f"{name}Scheduler"}, name) for name in (
        "EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep", "FlowMatchEulerDiscrete",
        "FlowMatchHeunDiscrete", "FlowMatchLCM", "CMStochasticIterative", "ScoreSdeVe", "KarrasVe",
        "IPNDM", "UnCLIP", "VQDiffusion", "Amused", "DDPMWuerstchen", "RePaint")),
    ({"_class_name": 7}, "variance-preserving"),
])  # fmt: skip
def test_schedules_that_are_refused(tmp_path, config, name):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(NETWORKS["sd15"]["scheduler"] | config))
    message = refused(schedulers.read, tmp_path, False)
    assert str(path) in message
    assert name in message


@pytest.mark.parametrize(("edit", "match"), [
    ({"vocab.json": []}, "not a JSON object"),
    ({"vocab.json": {}}, "lacks"),
    ({"vocab.json": {"<|startoftext|>": 0}}, "lacks '<|endoftext|>'"),
    ({"vocab.json": {"<|startoftext|>": "0", "<|endoftext|>": 1}}, "is '0'"),
    ({"vocab.json": {"<|startoftext|>": -1, "<|endoftext|>": 1}}, "is -1"),
    ({"vocab.json": {"<|startoftext|>": HUGE, "<|endoftext|>": 1}}, "is 1000000000000"),
    ({"vocab.json": {"<|startoftext|>": 5000, "<|endoftext|>": 1}}, "have no row"),
    ({"vocab.json": {"<|startoftext|>": 0, "<|endoftext|>": 1}}, "no byte-pair tokenizer"),
    ({"tokenizer_config.json": {"pad_token": "<pad>"}}, "lacks '<pad>'"),
    ({"tokenizer_config.json": {"pad_token": 3}}, "pad_token is 3"),
    ({"tokenizer_config.json": []}, "not a JSON object"),
    ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, "added_tokens_decoder"),
    ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "added_tokens"),
    ({"added_tokens.json": {"<cat-toy>": 300}}, "<cat-toy>.* have no row"),
    ({"added_tokens.json": {"<cat-toy>": None}}, "is None"),
    ({"vocab.json": None, "tokenizer.json": {}}, "no byte-pair tokenizer"),
    ({"vocab.json": None, "tokenizer.json": {"model": 3}}, "no byte-pair tokenizer"),
    ({"vocab.json": None, "tokenizer.json": {"model": {"type": "WordPiece"}}}, "WordPiece"),
    ({"vocab.json": None,
      "tokenizer.json": {"model": {"vocab": {}, "merges": [3]}}}, "no byte-pair tokenizer"),
    ({"vocab.json": None,
      "tokenizer.json": {"model": {"vocab": [], "merges": ["a b c"]}}}, "no byte-pair tokenizer"),
    ({"vocab.json": None}, "not the folder of a CLIP tokenizer"),
])  # fmt: skip
def test_lying_tokenizers(tmp_path, edit, match):
    folder = write_tokenizer(tmp_path / "tokenizer")
    for name, content in edit.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=match) as caught:
        tokenizer.load(folder, words=300)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(("changes", "name"), [
    ({"widths": [HUGE, 1, 1]}, "widths"),
    ({"widths": [8] * 40}, "widths"),
    ({"blocks": [1]}, "blocks"),
    ({"blocks": [10**5, 1, 1]}, "blocks"),
    ({"patch": 0}, "ZeroDivisionError"),
    ({"heads": "4"}, "heads"),
    ({"words": HUGE}, "words"),
    ({"depth": 3}, "depth"),
])  # fmt: skip
def test_lying_descriptions_of_the_embedded_network(tmp_path, changes, name):
    path = tmp_path / "props.safetensors"
    path.symlink_to(embedded.WEIGHTS)
    config = json.loads(embedded.WEIGHTS.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(config | changes))
    message = refused(embedded.open, path)
    assert str(path.with_suffix(".json")) in message
    assert name in message


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**40)
    | st.floats()
    | st.sampled_from(["", "silu", "linear", "DownBlock2D"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
FEW = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize(("part", "from_config"), [
    ("unet", unet.from_config),
    ("vae", vae.from_config),
    ("text_encoder", clip_text.from_config),
])  # fmt: skip
@FEW
@given(data=st.data())
def test_changed_configs(tmp_path_factory, part, from_config, data):
    config = dict(NETWORKS["sd15"][part]["config"])
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(VALUES)
    path = tmp_path_factory.getbasetemp() / f"{part}.json"
    path.write_text(json.dumps(config))
    try:
        weights.described(path, from_config, lambda network: None)
    except WeightsError as error:
        assert str(path) in str(error)  # noqa: PT017


@FEW
@given(data=st.data())
def test_changed_schedules(tmp_path_factory, data):
    config = dict(NETWORKS["sd15"]["scheduler"])
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(VALUES)
    path = tmp_path_factory.getbasetemp() / "scheduler_config.json"
    path.write_text(json.dumps(config))
    try:
        schedule = schedulers.read(path.parent, bounded=True)
        abar = np.asarray(schedule.alphas_cumprod)
        assert np.all(np.isfinite(abar))
        assert np.all((abar > 0) & (abar < 1))
        if schedule.sampler is not None:
            schedule.sampler(4)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
