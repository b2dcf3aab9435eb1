"""Pre-train the bundled tiny CLIP on rendered stills with captions and write its weight file.

The loss is CLIP's, in both directions, with one change: every caption of the batch that is true of an image counts as
its caption, and every image that a caption is true of as its image, the target probability being shared evenly, because
short captions such as "a circle" are true of many images. A linear classifier of each attribute on the image features
(not kept) is trained along: it gives the image tower a signal that the captions alone give only much later. The result
depends on the seed and the number of threads only, unless --minutes is given.

    python tools/pretrain_tiny_clip.py --steps 6000 --output tiny_clip.safetensors

The bundled weights were trained in two stages, each limited by --minutes and so not repeatable bit by bit: from random
weights (seed 0, --attribute-weight 0, --minutes 25, the averaged weights of step 3250), then from these with --init
(seed 1, --minutes 14, 2017 steps). The first stage's captions told the attributes with slightly other probabilities;
the JSON file beside the weights records all of this.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from motion_stills import (
    ATTRIBUTES,
    OPENINGS,
    draw_captions,
    draw_stills,
    vocabulary,
    write_caption,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2clip.data.built_in.motion import BASE_CLASSES, NOVEL_CLASSES, SHAPES, clip_seed, render_clip
from m2clip.towers.tiny import EMBEDDING, TINY_CONFIG, build_tiny_clip, pack_state

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
VALUES = dict(zip(ATTRIBUTES, (6, 9, 3, 3, 8), strict=True))


class Words:
    """Tokenizer onto the few rows of the token embedding that are trained; the order of the ids is kept."""

    def __init__(self) -> None:
        import open_clip

        self.tokenize = open_clip.SimpleTokenizer(context_length=TINY_CONFIG["text_cfg"]["context_length"])
        self.rows = self.tokenize(vocabulary()).unique()

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.searchsorted(self.rows, self.tokenize(texts))


def prepare(images: np.ndarray) -> Tensor:
    """uint8 (n, H, W, 3) -> normalised float (n, 3, S, S) at the tiny CLIP's size S."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    size = TINY_CONFIG["vision_cfg"]["image_size"]
    x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def clip_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Two-sided cross-entropy above its lower bound.

    Args:
        logits: (images, captions).
        true: bool (images, captions); every caption is true of at least one image.

    Returns:
        Scalar; 0 when every true pair of a row or column gets the same probability and nothing else any.
    """
    parts = []
    for scores, target in ((logits, true), (logits.T, true.T)):
        scores, target = scores[target.any(1)], target[target.any(1)].float()
        target = target / target.sum(1, keepdim=True)
        entropy = -(target * target.clamp_min(1e-12).log()).sum(1)
        parts.append((-(target * scores.log_softmax(1)).sum(1) - entropy).mean())
    return (parts[0] + parts[1]) / 2


@torch.no_grad()
def accuracy(model: nn.Module, words: Words, stills: list, attribute: str) -> float:
    """Zero-shot accuracy on one attribute: captions that state nothing but the true shape and this attribute."""
    column = ATTRIBUTES.index(attribute)
    right = []
    for images, attributes in stills:
        features = model.encode_image(images, normalize=True)
        for shape in range(len(SHAPES)) if column else (0,):
            says = np.full((VALUES[attribute], len(ATTRIBUTES)), -1)
            says[:, 0] = shape
            says[:, column] = np.arange(VALUES[attribute])
            texts = model.encode_text(words([write_caption(OPENINGS[0], row) for row in says]), normalize=True)
            of_shape = attributes[:, 0] == shape if column else np.ones(len(attributes), bool)
            predicted = (features[of_shape] @ texts.T).argmax(1).numpy()
            right.append(predicted == attributes[of_shape, column])
    return float(np.concatenate(right).mean())


@torch.no_grad()
def classify_clips(model: nn.Module, words: Words, clips_per_class: int = 5) -> dict[str, float]:
    """Zero-shot recognition on clips, by the mean over 8 frames and class-name prompts; of the shape also by frame."""
    facts = {}
    shapes = model.encode_text(words([f"a video of a {s}" for s in SHAPES]), normalize=True)
    for name, classes in (("base", BASE_CLASSES), ("novel", NOVEL_CLASSES)):
        texts = model.encode_text(words([f"a video of {c.name}" for c in classes]), normalize=True)
        pair, shape, motion, frame = [], [], [], []
        for label, c in enumerate(classes):
            for number in range(clips_per_class):
                clip = render_clip(c, clip_seed(1, "val", c, number))
                at = np.linspace(0, len(clip) - 1, 8).round().astype(int)
                frames = model.encode_image(prepare(clip[at]), normalize=True)
                guess = classes[int((frames.mean(0) @ texts.T).argmax())]
                pair.append(guess.id == label)
                shape.append(guess.shape == c.shape)
                motion.append(guess.motion == c.motion)
                frame.append(((frames @ shapes.T).argmax(1) == SHAPES.index(c.shape)).float().mean().item())
        for key, values in (("pair", pair), ("shape", shape), ("motion", motion), ("frame_shape", frame)):
            facts[f"{name}_{key}"] = round(float(np.mean(values)), 4)
    return facts


def evaluate(model: nn.Module, words: Words, stills: list) -> dict[str, float]:
    """Accuracies on held-out compositions and on clips."""
    model.eval()
    facts = {name: round(accuracy(model, words, stills, name), 4) for name in ATTRIBUTES}
    facts.update(classify_clips(model, words))
    model.train()
    return facts


def save(model: nn.Module, words: Words, path: Path, facts: dict) -> None:
    """Write the weight file and, beside it, the facts about the training."""
    state = model.state_dict()
    seen = (state[EMBEDDING] - words.start).abs().amax(1) > 0
    packed = pack_state(state, words.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(packed, path)
    facts = {**facts, "trained_token_rows": int(seen.sum()), "parameters": sum(t.numel() for t in packed.values())}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train the bundled tiny CLIP on rendered stills with captions.")
    parser.add_argument("--steps", type=int, default=1_000_000, help="number of steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time, whichever is first")
    parser.add_argument("--images", type=int, default=256, help="images per step")
    parser.add_argument("--captions", type=int, default=128, help="captions a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights that are written")
    parser.add_argument("--attribute-weight", type=float, default=0.5, help="weight of the attribute classifiers' loss")
    parser.add_argument("--init", type=Path, help="weight file to start from instead of random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=int, default=500, help="steps between reports and writes")
    parser.add_argument("--output", type=Path, required=True, help="weight file (.safetensors)")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    words = Words()
    model = build_tiny_clip()
    model.token_embedding = nn.Embedding(len(words.rows), TINY_CONFIG["text_cfg"]["width"])
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    if args.init:
        packed = load_file(args.init)
        values = packed.pop("token_values")
        if not torch.equal(packed.pop("token_rows").long(), words.rows):
            parser.error(f"{args.init} was trained with other words: start from random weights")
        model.load_state_dict({**{n: t.float() for n, t in packed.items()}, EMBEDDING: values.float()})
    words.start = model.token_embedding.weight.detach().clone()
    heads = nn.ModuleList(nn.Linear(TINY_CONFIG["embed_dim"], count) for count in VALUES.values())
    model.train()
    averaged = copy.deepcopy(model).eval()

    decay = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n] + list(heads.parameters())
    rest = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))

    test_rng = np.random.default_rng(args.seed + 1)
    unseen = draw_stills(test_rng, 1500, unseen=True)
    stills = [(prepare(unseen.images), unseen.attributes)]

    start, losses, step, progress = time.time(), [], 0, 0.0
    while progress < 1:
        lr = args.lr * min(1, (step + 1) / 300) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = draw_stills(rng, args.images, unseen=False)
        captions, says = draw_captions(rng, batch.attributes[: args.captions])
        said = says[None] >= 0
        true = torch.from_numpy(((batch.attributes[:, None] == says[None]) | ~said).all(2))
        features = model.encode_image(prepare(batch.images))
        text = model.encode_text(words(captions), normalize=True)
        contrast = clip_loss(model.logit_scale.exp() * F.normalize(features, dim=-1) @ text.T, true)
        told = torch.from_numpy(batch.attributes).T
        direct = sum(F.cross_entropy(head(features), target) for head, target in zip(heads, told, strict=True))
        loss = contrast + args.attribute_weight * direct
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        progress = max(step / args.steps, (time.time() - start) / (60 * args.minutes))
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
            keep = min(args.ema, (step + 1) / (step + 10))
            for mean, now in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        losses.append((contrast.item(), direct.item()))
        if step % args.report == 0 or progress >= 1:
            recent = np.mean(losses[-200:], axis=0).round(4).tolist()
            facts = {"steps": step, "loss": recent[0], "attribute_loss": recent[1]}
            facts.update(evaluate(averaged, words, stills))
            averaged.eval()
            facts.update(minutes=round((time.time() - start) / 60, 1), seed=args.seed, images_a_step=args.images)
            save(averaged, words, args.output, facts)
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
