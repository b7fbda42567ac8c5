"""Whatever changes a vector is stated, typed and checked when a configuration is made or read."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from plume import PlumeConfig, PlumeQwen2_5_VLConfig, PlumeQwen3VLConfig

CONFIGS = [PlumeConfig, PlumeQwen2_5_VLConfig, PlumeQwen3VLConfig]
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}  # not among the classes' defaults
WRONG = [
    *[("num_latent_steps", value) for value in ("8", 8.0, True, -1, None, [8])],
    *[("max_latent_steps", value) for value in ("32", 0, 1.5)],
    *[("num_experts", value) for value in ("4", 0, 4.0)],
    *[("num_active_experts", value) for value in ("2", 0, 2.0, 9)],
    *[("expert_expansion", value) for value in ("2", 0, 0.5)],
    *[(f"{token}_token_id", value) for token in ("anchor", "latent_start", "latent") for value in ("1", -1, 1.0, None)],
    *[("suffix_token_ids", value) for value in ("151657", [151657.0], ["151657"], [True], 151657, [1])],
    *[(switch, 1) for switch in ("use_shared_expert", "router_uses_anchor", "router_uses_step")],
    *[("expert_dropout", value) for value in ("0.1", 1.0, -0.1, float("nan"))],
    *[("transition_norm_eps", value) for value in ("1e-5", 1, float("nan"))],
    ("position_scheme", "rope"),
]


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value))
def test_a_latent_field_of_the_wrong_kind_is_refused_by_name(config_class, field, value):
    with pytest.raises(ValueError, match=field):
        config_class(**{field: value})


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(("field", "value"), [("num_latent_steps", "8"), ("num_experts", 4.0), ("router_uses_step", 0)])
def test_a_file_with_a_field_of_the_wrong_kind_is_refused_by_name(tmp_path, config_class, field, value):
    written = {**config_class(text_config={"rope_parameters": ROPE}).to_dict(), field: value}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=field):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_configuration_survives_its_file(tmp_path, config_class):
    fields = {"num_latent_steps": 3, "num_experts": 5, "router_uses_step": False, "position_scheme": "kv_length"}
    config = config_class(text_config={"rope_parameters": ROPE}, **fields)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert again | {"_name_or_path": ""} == config.to_dict()


FIELDS = sorted({field for field, _ in WRONG})
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
def test_any_configuration_is_kept_as_given_or_refused(fields):
    try:
        config = PlumeConfig(**fields)
    except ValueError:
        return
    for name, value in fields.items():
        kept = vars(config)[name]
        if name == "suffix_token_ids" and value is None:  # its default
            continue
        assert (type(kept), kept) == (type(value), value), name


# What transformers computes itself, or reads as anything.
DERIVED = ("dtype", "model_type", "architectures", "transformers_version", "use_cache", "layer_types", "sliding_window")


def paths(config: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = [path for name, value in config.items() if isinstance(value, dict) for path in paths(value, (*above, name))]
    return [(*above, name) for name in config] + below


def at(config: dict, path: tuple[str, ...]):
    for name in path:
        config = config[name]
    return config


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_config_file_is_used_as_it_is_or_refused(data, tmp_path_factory):
    """No other error, and no default in place of what the file says, in the parts of the backbone too."""
    config_class = data.draw(st.sampled_from(CONFIGS))
    written = config_class(text_config={"rope_parameters": ROPE}).to_dict()
    path = data.draw(st.sampled_from([path for path in paths(written) if path != ("model_type",)]))
    value = data.draw(st.one_of(VALUES, st.integers(), st.sampled_from([[1], {"a": 1}, "14"])))
    at(written, path[:-1])[path[-1]] = value
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(written))
    try:
        loaded = AutoConfig.from_pretrained(folder).to_dict()
    except ValueError:
        return
    if path[-1] not in DERIVED:
        assert repr(at(loaded, path)) == repr(value)


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_config_file_is_settings_or_an_error(data, tmp_path_factory):
    """What is no JSON is refused by transformers, before it knows whose the file is: with an OSError that names it."""
    content = bytearray(json.dumps(PlumeConfig(text_config={"rope_parameters": ROPE}).to_dict(), indent=2).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    file = tmp_path_factory.mktemp("config") / "config.json"
    file.write_bytes(bytes(content[:cut]))
    try:
        loaded = PlumeConfig.from_pretrained(file.parent)
    except OSError as error:
        assert "config.json" in str(error)  # noqa: PT017
    except ValueError:
        return
    else:
        assert loaded.num_latent_steps == json.loads(file.read_text())["num_latent_steps"]
