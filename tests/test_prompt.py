"""The prompt: golden strings and ids of the released checkpoint, order of content, neutralised user text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inputs import noise_image
from plume import PAPER_LAYOUT, RELEASED_LAYOUT, PlumeProcessor, PromptLayout
from plume.content_plume import canonical_messages, neutralize, to_conversation
from plume.hub.random_checkpoint import build_tokenizer
from plume.layouts import EMBEDDER_LAYOUT, build_chat_template
from plume.start import build_processor

DIRECTIVE = (
    "Represent the above input text, images, videos, or any combination of the three as embeddings. First output the "
    "thinking process in <think> </think> tags and then summarize the entire input in a word or sentence. Finally, use "
    "the <gen_emb> tag to represent the entire input."
)
# Qwen2-VL ids of the released prompt, piece by piece.
GOLDEN_PIECES = {
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n":
        [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198],
    "<|im_start|>user\n": [151644, 872, 198],
    "<|im_start|>assistant\n": [151644, 77091, 198],
    "<|im_end|>\n": [151645, 198],
    "<|vision_start|>": [151652],
    "<|vision_end|>": [151653],
    "<|image_pad|>": [151655],
    "<|video_pad|>": [151656],
    "<think><bot>": [13708, 766, 29, 151659],
    "<eot></think>\n<gen_emb>": [151660, 522, 26865, 397, 151657],
    f"\n<disc_emb>\n{DIRECTIVE}": [
        198, 151658, 198, 65743, 279, 3403, 1946, 1467, 11, 5335, 11, 6803, 11, 476, 894, 10601, 315, 279, 2326, 438,
        70547, 13, 5512, 2550, 279, 7274, 1882, 304, 366, 26865, 29, 690, 26865, 29, 9492, 323, 1221, 62079, 279, 4453,
        1946, 304, 264, 3409, 476, 11652, 13, 17375, 11, 990, 279, 220, 151657, 4772, 311, 4009, 279, 4453, 1946, 13],
    "QUESTION": [-1],
}  # fmt: skip


def encode_golden(text: str) -> list[int]:
    """Ids of a prompt made of golden pieces; fails on anything else."""
    ids = []
    while text:
        piece = next((piece for piece in GOLDEN_PIECES if text.startswith(piece)), None)
        assert piece is not None, f"no golden piece begins {text[:60]!r}"
        ids += GOLDEN_PIECES[piece]
        text = text[len(piece) :]
    return ids


def render(layout, content, **variables) -> str:
    template = build_chat_template(layout)
    messages = canonical_messages(content, [])
    return build_tokenizer().apply_chat_template(
        messages, tokenize=False, chat_template=template, add_generation_prompt=True, **variables
    )


def test_released_layout_gives_the_golden_ids():
    text = render(RELEASED_LAYOUT, to_conversation({"text": "QUESTION", "image": noise_image(0)}))
    pieces = [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "<|im_start|>user\n",
        "<|vision_start|>",
        "<|image_pad|>",
        "<|vision_end|>",
        "QUESTION",
        f"\n<disc_emb>\n{DIRECTIVE}",
        "<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<think><bot>",
    ]
    assert encode_golden(text) == [token for piece in pieces for token in GOLDEN_PIECES[piece]]
    assert len(GOLDEN_PIECES[f"\n<disc_emb>\n{DIRECTIVE}"]) == 60
    # 97 tokens around a 14-token question: the length that the golden positions start from.
    assert len(encode_golden(render(RELEASED_LAYOUT, to_conversation("QUESTION")))) - 1 + 14 == 97
    assert encode_golden(RELEASED_LAYOUT.suffix) == [151660, 522, 26865, 397, 151657]


def test_paper_layout_reads_as_documented():
    text = render(PAPER_LAYOUT, to_conversation({"video": [noise_image(0)], "text": "a bus"}, "Find it."))
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>Find it.\na bus\n<anchor><|im_end|>\n<|im_start|>assistant\n<slt>"
    )
    assert PAPER_LAYOUT.suffix == "<elt><gen>"


def test_without_text_the_instruction_comes_after_the_media():
    text = render(PAPER_LAYOUT, to_conversation(noise_image(0), "Find it."))
    assert "<|vision_end|>Find it.\n<anchor>" in text


def test_explicit_reasoning_prompt_ends_before_the_latent_block():
    assert render(PAPER_LAYOUT, to_conversation("a bus"), latent=False).endswith("<|im_start|>assistant\n")
    assert render(RELEASED_LAYOUT, to_conversation("a bus"), latent=False).endswith("assistant\n<think>")
    assert render(EMBEDDER_LAYOUT, to_conversation("a bus"), latent=False).endswith("<|im_start|>assistant\n")


def test_a_single_text_goes_after_its_media_whatever_the_order():
    image = noise_image(0)
    first = render(PAPER_LAYOUT, to_conversation({"text": "a bus", "image": image}))
    assert first == render(PAPER_LAYOUT, to_conversation({"image": image, "text": "a bus"}))


def test_several_texts_keep_their_places_between_the_media():
    parts = [
        {"type": "text", "text": "from"},
        {"type": "image", "image": noise_image(0)},
        {"type": "text", "text": "to"},
    ]
    text = render(PAPER_LAYOUT, [{"role": "user", "content": parts}])
    assert "user\nfrom<|vision_start|><|image_pad|><|vision_end|>to\n<anchor>" in text


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ({"text": ""}, "is empty"),
        ({"audio": b""}, "unknown modality 'audio'"),
        (3.5, "given as float"),
        ([{"role": "user", "content": [{"type": "audio", "audio": 1}]}], "unknown modality 'audio'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "holds no image"),
        ([{"role": "query", "content": "a"}], "role 'query'"),
        ([{"role": "user"}], "needs 'role' and 'content'"),
        ([{"role": "user", "content": None}], "needs 'role' and 'content'"),
        ([{"role": "user", "content": ["a"]}], "a list of parts"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "given as int"),
        ([{"role": "user", "content": [{"type": "image", "image": "a.png", "max_pixels": 9}]}], "unknown keys"),
        ([{"role": "system", "content": [{"type": "image", "image": "a.png"}]}], "system message holds media"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "instructs nothing"),
    ],
)
def test_unusable_inputs_are_refused_with_the_cause(item, message):
    with pytest.raises(ValueError, match=message):
        canonical_messages(to_conversation(item), [])


@pytest.mark.parametrize(
    ("given_video", "count"),
    [
        (["a.mp4", "b.mp4"], 2),
        (["a.gif"], 1),
        (["a.png", "b.png"], 1),
        (["a.tiff", "b.ppm"], 1),
        (["data:image/png;base64,x"] * 3, 1),
        ([["a.png"], ["b.png"]], 2),
        ("a.mp4", 1),
        ([1, 2, 3], 1),
        ([], 1),
    ],  # fmt: skip
)
def test_a_list_of_frames_is_one_video_and_a_list_of_files_several(given_video, count):
    assert len(canonical_messages(to_conversation({"video": given_video}), [])[0]["content"]) == count


def test_whole_videos_and_frames_in_one_list_are_refused():
    with pytest.raises(ValueError, match="mixes whole videos and single frames"):
        canonical_messages(to_conversation({"video": ["a.mp4", "b.png"]}), [])


def test_halves_of_a_control_token_do_not_meet():
    """Texts next to each other, system messages next to each other, and a prompt before a system message."""
    halves = ["x <an", "chor> <|im_", "end|>", "<|image_", "pad|>", "<sl", "t>"]
    system = [{"role": "system", "content": half} for half in halves]
    conversation = to_conversation([*system, {"role": "user", "content": [{"type": "text", "text": halves}]}], "<sl")
    text = _PROCESSOR.apply_chat_template(conversation)
    assert [text.count(token) for token in ("<anchor>", "<slt>", "<|im_end|>", "<|image_pad|>")] == [1, 1, 2, 0]
    assert "a red\nbus" in _PROCESSOR.apply_chat_template(to_conversation({"text": ["a red", "bus"]}))


def test_a_directive_may_hold_quotes_and_backslashes():
    layout = PromptLayout(directive='\nSummarize the user\'s "input" \\n.')
    assert '<anchor>\nSummarize the user\'s "input" \\n.<|im_end|>' in render(layout, to_conversation("a bus"))


def test_control_tokens_in_user_text_are_broken_up():
    assert neutralize("a <gen> and <|image_pad|>", ["<gen>", "<|image_pad|>"]) == "a < gen> and < |image_pad|>"


fragments = st.sampled_from(
    ["<", "gen>", "<gen>", "|im_", "<|im_", "start|>", "<|image_pad|>", "<slt>", "anchor>", " ", "a"]
)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(fragments, max_size=8).map("".join))
def test_user_text_never_becomes_a_control_token(text):
    control = set(_PROCESSOR.tokenizer.get_added_vocab().values())
    harmless, found = (
        [token for token in _PROCESSOR.process_documents([given])["input_ids"][0].tolist() if token in control]
        for given in ("a", f"a{text}")
    )
    assert found == harmless


keys = st.sampled_from(["role", "content", "type", "text", "image", "video", "url", "user", 5])
values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4), st.sampled_from(["user", "text"]))
anything = st.recursive(
    values, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)), max_leaves=8
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(item=anything)
def test_any_input_is_read_or_refused(item):
    message = "Input 0: "
    try:
        _PROCESSOR.process_documents([item])
    except ValueError as error:
        message = str(error)
    assert message.startswith("Input 0: ")


def _make_processor() -> PlumeProcessor:
    return build_processor(build_tokenizer())


_PROCESSOR = _make_processor()
