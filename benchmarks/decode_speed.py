"""Clips a second that a core decodes, by reader and by how the videos are stored, and what a GPU needs of it.

    python benchmarks/decode_speed.py
    python benchmarks/decode_speed.py --videos 1 --seconds 1 --rounds 2 --decodes 20 --clips 4    a quick look

A clip is 8 frames spread over a video of 10 s, 340x256 pixels, H.264, generated here at 25 and 30 frames per second.
The videos are read as they are, with 250 and with 30 frames from one key frame to the next, as XviD in AVI with packed
B-frames beside the same stream in mp4, as `m2clip pack --video` makes them, and from the shards of `m2clip pack`. All
readers take turns in one process on one core, and the processor time of a turn is what counts, so that other work on
the machine and threads of a library change nothing. A reader whose frames are not those of ours is not timed, and the
exit code is then 1. Memory is that of a process of its own per reader: the peak, and the growth over so many decodes
after a warm-up. Then whole data loaders, decoding and augmentation together, with 0, 1 and 2 workers. Writes
decode_speed.json and decode_speed.png.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import pictures
from benchmarks.decode_readers import DECORD, FILE_READERS, OURS, OURS_DECORD, SEQUENTIAL, Reader, stored, usable
from benchmarks.decode_videos import HEIGHT, WIDTH, write_video, write_xvid
from benchmarks.measure import interleave, parser, ratio, summary, write_results
from benchmarks.memory import in_own_process, peak_resident_gb, resident_gb
from m2clip.data.lists.annotations import Annotations, VideoItem, load_annotations

FAR, NEAR, ENCODED, SHARDS = "key frames 250 apart", "key frames 30 apart", "m2clip pack --video", "m2clip pack"
XVID, XVID_MP4 = "XviD in AVI, packed", "the same XviD stream in mp4"
WARM_UP = 30  # decodes before memory is looked at
MEMORY_OF = ((FAR, DECORD), (NEAR, OURS), (NEAR, OURS_DECORD), (NEAR, DECORD), (NEAR, SEQUENTIAL), (SHARDS, OURS))
LONG_RUNS = ((NEAR, OURS), (NEAR, OURS_DECORD), (SHARDS, OURS))  # all decodes; the others a tenth
NEEDS = (100, 1000)  # clips a second of a GPU
WORKERS = (0, 1, 2)


def generate(folder: Path, videos: int, seconds: float) -> dict[str, Annotations]:
    """The same videos in every form; what is there from an earlier call is kept."""
    from m2clip.data.packs.pack import pack
    from m2clip.data.packs.settings import PackSettings

    lists = {}
    for name, distance in ((FAR, 250), (NEAR, 30)):
        own = folder / f"keyframes_{distance}"
        own.mkdir(parents=True, exist_ok=True)
        for seed in range(videos):
            path = own / f"{seed}.mp4"
            if not path.exists():
                write_video(path.with_suffix(".partial.mp4"), seed, distance, (30, 25)[seed % 2], seconds).rename(path)
        (own / "list.txt").write_text("".join(f"{seed}.mp4 {seed % 2}\n" for seed in range(videos)))
        lists[name] = load_annotations(own / "list.txt")
    avi, mp4 = folder / "xvid_avi", folder / "xvid_mp4"
    for own, suffix in ((avi, "avi"), (mp4, "mp4")):
        own.mkdir(exist_ok=True)
        (own / "list.txt").write_text("".join(f"{seed}.{suffix} {seed % 2}\n" for seed in range(videos)))
    for seed in range(videos):
        if not (avi / f"{seed}.avi").exists():
            write_xvid(avi / f"{seed}.avi", mp4 / f"{seed}.mp4", seed, 250, (30, 25)[seed % 2], seconds)
    lists[XVID], lists[XVID_MP4] = load_annotations(avi / "list.txt"), load_annotations(mp4 / "list.txt")
    for name, settings in ((ENCODED, PackSettings("videos")), (SHARDS, PackSettings())):
        target = folder / f"packed_{settings.kind}"
        pack(lists[FAR], target, settings, workers=1)
        lists[name] = load_annotations(target)
    return lists


def readers_of(name: str) -> dict[str, Reader]:
    if name in (XVID, XVID_MP4):
        # Other libraries give other frames of an AVI.
        return {reader: FILE_READERS[reader] for reader in (OURS, SEQUENTIAL)}
    return {OURS: stored} if name == SHARDS else FILE_READERS


def bytes_of(annotations: Annotations) -> int:
    """Of all videos as they are stored."""
    return sum(item.sample.length if item.sample else item.path.stat().st_size for item in annotations.items)


def decode_all(read: Reader, items: Sequence[VideoItem], repeats: int = 1) -> Callable[[], None]:
    def run() -> None:
        for _ in range(repeats):
            for item in items:
                read(item)

    return run


def measure_readers(lists: Mapping[str, Annotations], rounds: int) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Numbers of every form and reader, the ratios that matter, and complaints of wrong readers."""
    forms: dict[str, Any] = {}
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    repeats: dict[tuple[str, str], int] = {}
    complaints: list[str] = []
    for name, stored_list in lists.items():
        ready, missing, wrong = usable(readers_of(name), stored_list.items)
        complaints += wrong
        size = bytes_of(stored_list) / len(stored_list)
        forms[name] = {"bytes_a_video": round(size), "not_run": missing, "readers": {}}
        for reader, read in ready.items():
            repeats[name, reader] = 10 if name == SHARDS else 1  # a turn is long enough for the clock
            runs[name, reader] = decode_all(read, stored_list.items, repeats[name, reader])
    # Processor seconds, threads included.
    taken = interleave(runs, rounds, torch.device("cpu"), clock=time.process_time)
    clip = {key: [value / repeats[key] / len(lists[key[0]]) for value in values] for key, values in taken.items()}
    for (name, reader), seconds in clip.items():
        numbers = {"seconds": summary(seconds), "clips_a_core_second": 1 / summary(seconds)["median"]}
        if (name, DECORD) in clip:
            numbers["speedup_over"] = {DECORD: ratio(clip[name, DECORD], seconds)}
        forms[name]["readers"][reader] = numbers
    pairs = {
        "shards over the original by plain decord": ((FAR, DECORD), (SHARDS, OURS)),
        "shards over the original by the authors' loader": ((FAR, SEQUENTIAL), (SHARDS, OURS)),
        "shards over the original by m2clip": ((FAR, OURS), (SHARDS, OURS)),
        "re-encoded over the original, both by m2clip": ((FAR, OURS), (ENCODED, OURS)),
        "m2clip over plain decord, original": ((FAR, DECORD), (FAR, OURS)),
        "m2clip with decord over plain decord, original": ((FAR, DECORD), (FAR, OURS_DECORD)),
        "m2clip over the authors' loader, original": ((FAR, SEQUENTIAL), (FAR, OURS)),
        "mp4 over the same XviD stream in AVI, both by m2clip": ((XVID, OURS), (XVID_MP4, OURS)),
    }
    ratios = {name: ratio(clip[a], clip[b]) for name, (a, b) in pairs.items() if a in clip and b in clip}
    return forms, ratios, complaints


def memory_of(read: Reader, items: Sequence[VideoItem], decodes: int) -> dict[str, Any]:
    """Memory of this process over so many decodes: at the start, at ten times on the way, and its peak."""
    source = itertools.cycle(items)
    for _ in range(WARM_UP):
        read(next(source))
    resident = [resident_gb()]
    for _ in range(10):
        for _ in range(max(decodes // 10, 1)):
            read(next(source))
        resident.append(resident_gb())
    megabytes = [round(1024 * value, 1) for value in resident]
    growth = round(megabytes[-1] - megabytes[0], 1)
    return {"decodes": decodes, "peak_mb": round(1024 * peak_resident_gb(), 1), "growth_mb": growth, "mb": megabytes}


def measure_memory(folder: Path, decodes: int, arguments: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, reader in MEMORY_OF:
        number = decodes if (name, reader) in LONG_RUNS else max(decodes // 10, 1)
        own = ["--folder", str(folder), "--memory-of", name, reader, "--decodes", str(number)]
        numbers, reason = in_own_process([__file__, *arguments, *own])
        found[f"{name}: {reader}"] = numbers or {"unknown": reason}
    return found


def measure_loaders(lists: Mapping[str, Annotations], clips: int, rounds: int) -> dict[str, Any]:
    """Clips a second of whole loaders from the first batch on, and the cores that a GPU's hunger for clips needs.

    What a core does is measured without workers, by processor time: no start of processes, and no other work counts.
    """
    from m2clip.data.clips import ClipDataset, ClipSettings, collate
    from m2clip.data.loading import load

    found: dict[str, Any] = {}
    for name in (FAR, ENCODED, SHARDS):
        dataset = ClipDataset(lists[name], ClipSettings(), training=True)
        # As many epochs over the few videos as are needed, each with other frames and crops.
        epochs = max(-(-clips * (5 if name == SHARDS else 1) // len(dataset)), 2)
        batches = [[(epoch, index) for index in range(len(dataset))] for epoch in range(epochs)]
        rates: dict[str, Any] = {}
        for workers in WORKERS:
            walls, costs = [], []
            for _ in range(rounds):
                loaded = load(dataset, batches, workers=workers, collate=collate)
                next(loaded)
                start, before = time.perf_counter(), time.process_time()
                done = sum(len(batch["label"]) for batch in loaded)
                walls.append(done / (time.perf_counter() - start))
                costs.append((time.process_time() - before) / done)
            rates[str(workers)] = summary(walls)
            if workers == 0:
                cost = summary(costs)
        found[name] = {
            "clips_a_second_by_workers": rates,
            "processor_seconds_a_clip": cost,
            "cores_for_clips_a_second": {str(need): round(need * cost["median"], 1) for need in NEEDS},
        }
    return found


def show(content: Mapping[str, Any]) -> None:
    for name, form in content["forms"].items():
        print(f"{name} ({form['bytes_a_video'] / 1e3:.0f} kB a video)")
        for reader, numbers in form["readers"].items():
            seconds = numbers["seconds"]
            spread = f"{1e3 * seconds['p20']:.1f} to {1e3 * seconds['p80']:.1f}"
            rate = numbers["clips_a_core_second"]
            print(f"  {reader:20} {1e3 * seconds['median']:7.1f} ms ({spread}), {rate:6.1f} clips a core and second")
        for reader, reason in form["not_run"].items():
            print(f"  {reader:20} not run: {reason}")
    for name, value in content["ratios"].items():
        print(f"{value['median']:6.2f}x  {name} ({value['p20']:.2f} to {value['p80']:.2f})")
    for name, numbers in content["memory"].items():
        print(f"{name}: {numbers}")
    for name, numbers in content["loaders"].items():
        rates = numbers["clips_a_second_by_workers"].items()
        by_workers = ", ".join(f"{rate['median']:.1f} with {workers}" for workers, rate in rates)
        cores = ", ".join(f"{count} for {need}" for need, count in numbers["cores_for_clips_a_second"].items())
        print(f"loader, {name}: clips/s with workers: {by_workers}; cores for clips/s: {cores}")


def main() -> None:
    options = parser(__doc__, "--rounds", rounds=9)
    options.add_argument("--videos", type=int, default=4)
    options.add_argument("--seconds", type=float, default=10.0, help="length of a video")
    options.add_argument("--decodes", type=int, default=2000, help="of the test of memory")
    options.add_argument("--clips", type=int, default=48, help="of a data loader; five times as many from shards")
    options.add_argument("--folder", type=Path, help="keep the videos here (default: a temporary folder)")
    options.add_argument("--memory-of", nargs=2, metavar=("FORM", "READER"), help="print only its memory as JSON")
    args = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        lists = generate(folder, args.videos, args.seconds)
        if args.memory_of:
            name, reader = args.memory_of
            print(json.dumps(memory_of(readers_of(name)[reader], lists[name].items, args.decodes)))
            return
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(everywhere)})
        forms, ratios, complaints = measure_readers(lists, args.rounds)
        os.sched_setaffinity(0, everywhere)
        shape = ["--videos", str(args.videos), "--seconds", str(args.seconds)]
        memory = measure_memory(folder, args.decodes, shape)
        loaders = measure_loaders(lists, args.clips, max(args.rounds // 3, 1))
    names = ("videos", "seconds", "rounds", "decodes", "clips")
    config = {**{name: getattr(args, name) for name in names}, "width": WIDTH, "height": HEIGHT, "frames": 8}
    content = {"config": config, "forms": forms, "ratios": ratios, "memory": memory, "loaders": loaders}
    show(content)
    path = write_results("decode_speed", torch.device("cpu"), content, args.out)
    print(f"{path}\n{pictures.draw(json.loads(path.read_text()), path.with_suffix('.png'))}")
    if complaints:
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
