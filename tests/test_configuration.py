"""Whatever changes a vector is stated, typed and checked when a configuration is made or read."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from plume import PlumeConfig, PlumeQwen2_5_VLConfig, PlumeQwen3VLConfig

CONFIGS = [PlumeConfig, PlumeQwen2_5_VLConfig, PlumeQwen3VLConfig]
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
    written = {**config_class().to_dict(), field: value}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=field):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_configuration_survives_its_file(tmp_path, config_class):
    config = config_class(num_latent_steps=3, num_experts=5, router_uses_step=False, position_scheme="kv_length")
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
