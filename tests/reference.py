"""PLUME once more, one row at a time and as plainly as the paper says it; slow, and written to be compared with.

No cache, no fused tail, no batch, experts in a loop, positions counted token by token.
"""

import torch
from torch import nn


def adapter(transition, z, step, anchor):
    """Eq. 4-5 for one latent state ``(D,)``."""
    query = torch.cat([z + anchor, transition.router.step_embedding.weight[step - 1]])
    probs = torch.softmax(transition.router.projection(query), dim=-1)
    normed, bank = transition.layer_norm(z), transition.experts

    def expert(index):
        hidden = nn.functional.gelu(normed @ bank.up_weight[index] + bank.up_bias[index, 0])
        return hidden @ bank.down_weight[index] + bank.down_bias[index, 0]

    refined = z + expert(0)
    for m in sorted(range(len(probs)), key=lambda m: -probs[m].item())[: transition.num_active_experts]:
        refined = refined + probs[m] * expert(1 + m)
    return refined, probs


def count_positions(ids, grids, media_ids, merge=2, time_steps=None):
    """M-RoPE positions of one unpadded row as a list of (t, h, w), and the next free position.

    `time_steps` holds, per video, the positions from one temporal patch to the next (Qwen2.5-VL).
    """
    positions, following, remaining, index = [], 0, {token: list(grids[token]) for token in media_ids}, 0
    time_steps = {token: list((time_steps or {}).get(token, [1] * len(grids[token]))) for token in media_ids}
    while index < len(ids):
        if ids[index] in media_ids:
            t, h, w = remaining[ids[index]].pop(0)
            step = time_steps[ids[index]].pop(0)
            h, w = h // merge, w // merge
            item = [(int(a * step), b, c) for a in range(t) for b in range(h) for c in range(w)]
            positions += [tuple(following + offset for offset in offsets) for offsets in item]
            following += max(max(offsets) for offsets in item) + 1
            index += t * h * w
        else:
            positions.append((following,) * 3)
            following += 1
            index += 1
    return positions, following


def place_media(config, features, grids):
    """What a backbone counts as one media item, and how far time goes from one temporal patch to the next."""
    if config.model_type.endswith("qwen2_5_vl"):
        seconds = torch.as_tensor(features.get("second_per_grid_ts", [1.0] * len(grids[config.video_token_id])))
        return grids, {config.video_token_id: (seconds * config.vision_config.tokens_per_second).tolist()}
    if config.model_type.endswith("qwen3_vl"):  # every temporal patch is an item of its own
        return {token: [[1, h, w] for t, h, w in several for _ in range(t)] for token, several in grids.items()}, {}
    return grids, {}


def embed_row(model, features, num_latent_steps, config=None, refine=None):
    """Embedding and anchor embedding of a batch of one, following sections 3.3-3.5 step by step.

    Any Qwen2-VL will do as model where `config` (token ids, suffix, position scheme) and `refine` (the adapter as a
    function of state, step and anchor) are given.
    """
    config = config or model.config
    refine = refine or (lambda z, k, anchor: adapter(model.latent_transition, z, k, anchor)[0])
    ids = features["input_ids"][0].tolist()
    grids = {
        config.image_token_id: features.get("image_grid_thw", torch.empty(0, 3)).int().tolist(),
        config.video_token_id: features.get("video_grid_thw", torch.empty(0, 3)).int().tolist(),
    }
    items, time_steps = place_media(config, features, grids)
    positions, following = count_positions(ids, items, items.keys(), time_steps=time_steps)
    if config.position_scheme == "kv_length":
        following = len(ids)
    sequence, deep = list(model.get_input_embeddings()(features["input_ids"])[0]), {}
    for name, token in (("", config.image_token_id), ("_videos", config.video_token_id)):
        if f"pixel_values{name}" in features:
            visual = model.model.visual(features[f"pixel_values{name}"], grid_thw=torch.tensor(grids[token]))
            places = [i for i, t in enumerate(ids) if t == token]
            for row, place in enumerate(places):
                sequence[place] = visual.pooler_output[row]
                if hasattr(visual, "deepstack_features"):
                    deep[place] = [level[row] for level in visual.deepstack_features]

    def backbone():
        deepstack = {}
        if deep:
            deepstack["visual_pos_masks"] = torch.tensor([[i in deep for i in range(len(sequence))]])
            deepstack["deepstack_visual_embeds"] = [
                torch.stack(level) for level in zip(*(deep[place] for place in sorted(deep)), strict=True)
            ]
        return model.model.language_model(
            inputs_embeds=torch.stack(sequence).unsqueeze(0),
            attention_mask=torch.ones(1, len(sequence)),  # without, Qwen3-VL of transformers 5.0 sees packed rows
            position_ids=torch.tensor(positions).T.unsqueeze(1),
            use_cache=False,
            **deepstack,
        ).last_hidden_state[0]

    states = backbone()
    anchor = states[max(i for i, token in enumerate(ids) if token == config.anchor_token_id)]
    z = states[-1]
    for k in range(1, num_latent_steps + 1):
        sequence.append(refine(z, k, anchor))
        positions.append((following,) * 3)
        following += 1
        z = backbone()[-1]
    for token in config.suffix_token_ids:
        sequence.append(model.get_input_embeddings().weight[token])
        positions.append((following,) * 3)
        following += 1
    gen = backbone()[-1]
    return gen / gen.norm(), anchor / anchor.norm()
