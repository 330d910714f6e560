"""Does our training beat AdaptiveNet's in the same time? Accuracy at shares of the oracle's latency, arm by arm.

    python tools/bench/elastify.py all --data DIR --work work/elastify

Tiny-ImageNet-100 and one MobileNetV2 oracle from ImageNet weights. Every arm trains for the same time from the same
oracle, in a process of its own that can be killed and started again at any moment, and is scored by the same labelled
search on images of its own; beside them stand the oracle and the networks of their own as onnxruntime quantises them.
`all` runs what is missing; `oracle`, `train` and `score` are its steps, and `report` says what is scored so far. A file
STOP in the work folder stops it within seconds, with its checkpoints kept. Progress is in log.jsonl and the arms'
progress.json. Arms may train beside each other too, each by `train` on a part of the cores: they make as many steps as
alone.

Latency is the median of one frame on one thread, over that of the oracle's static ONNX export in the same rounds. Only
what is timed holds the machine's lock: training may go on beside other work. The last line is one JSON object.
"""

# ruff: noqa: TID251 - a bench may use torch and the builder; only the runtime must not

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import common
from elastify_arms import ARMS, FIGURES, PLAIN, Arm, reference_of, train_arm
from elastify_data import PIXELS, TinyImages, load_images
from elastify_oracle import EPOCHS, GRAPH, RESULT, load_oracle, train_oracle
from elastify_points import kept_points
from elastify_quantised import quantised_folder, score_quantised
from elastify_recipes import Training
from elastify_report import OURS, report
from elastify_score import FRACTIONS, Effort, score_arm
from elastify_tested import oracle_right

from builder.errors import BuildError
from builder.files import write_atomically
from builder.project.plan import DEFAULT_BATCH
from builder.recipes.common import claim_work
from builder.runlog import RunLog
from builder.training import Compute, Precision
from edge_runtime.errors import InputError, StateError

SEED = 0
"""Of the splits, the oracle and the search; arms have their own."""

STOP, STOP_POLL_S, STOP_WAIT_S = "STOP", 5.0, 60.0
INTERRUPTED = 130

IN_ORDER = (
    *(("ours", 0), ("adaptivenet", 0), ("purpose-60", 0), ("ours-unlabelled", 0), ("adaptivenet", 1), ("ours", 1)),
    *(("purpose-80", 0), ("purpose-40", 0), ("pruned", 0), ("naive", 0)),
)
"""The arms, in the order in which their figures are wanted."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    training: Training
    oracle_epochs: int
    fractions: tuple[float, ...]
    effort: Effort
    arms: tuple[Arm, ...]


def _scale(arguments: argparse.Namespace) -> Scale:
    arms = tuple(Arm(*entry) for entry in IN_ORDER)
    if not arguments.quick:
        return Scale(_training(arguments, 12.0), EPOCHS, FRACTIONS, Effort(), arms)
    few = tuple(arm for arm in arms if arm.folder in ("ours-seed0", "adaptivenet-seed0", "purpose-60-seed0"))
    effort = Effort(population=3, generations=1, runs=12)
    return Scale(_training(arguments, 0.05), 1, (0.7, 0.5), effort, few)


def _training(arguments: argparse.Namespace, minutes: float) -> Training:
    precision: Precision = "fp32" if arguments.device == "cpu" else "auto"
    return Training(arguments.minutes or minutes, arguments.batch_size, Compute(arguments.device, precision))


def _arguments() -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--work", type=Path, default=Path("work/elastify"), help="folder for everything that is kept")
    shared.add_argument("--data", type=Path, default=os.environ.get("NNF_DATA"), help="data folder ($NNF_DATA)")
    shared.add_argument("--minutes", type=float, help="of training of each arm, 12 where it is not given")
    shared.add_argument("--batch-size", type=int, default=DEFAULT_BATCH, help="of the arms (default: %(default)s)")
    shared.add_argument("--device", default="cpu", help="on which the arms train: cpu, or cuda in bf16 where it can")
    shared.add_argument("--quick", action="store_true", help="a few images, arms and seconds, to try the plumbing")
    shared.add_argument("--json", help="write the result to this file too")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("oracle", parents=[shared], help="fine-tune the oracle")
    train = verbs.add_parser("train", parents=[shared], help="train one arm")
    train.add_argument("arm", choices=sorted(ARMS), help="; ".join(f"{name}: {text}" for name, text in ARMS.items()))
    train.add_argument("--seed", type=int, default=0)
    verbs.add_parser("score", parents=[shared], help="score what is trained")
    verbs.add_parser("report", parents=[shared], help="say what is scored so far, and score no more")
    verbs.add_parser("all", parents=[shared], help="run what is missing, in order")
    arguments = parser.parse_args()
    if arguments.minutes is not None and arguments.minutes <= 0:
        parser.error("--minutes is above 0")
    if arguments.batch_size < 2:
        parser.error("--batch-size is 2 or more")
    return arguments


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.data is None:
        raise InputError("this bench needs Tiny-ImageNet and ImageNet weights", hint="name their folder with --data")
    scale = _scale(arguments)
    settings = {"quick": arguments.quick, "minutes": scale.training.minutes, "seed": SEED, "pixels": PIXELS}
    settings |= {"batch_size": scale.training.batch_size}
    claim_work(arguments.work, "bench-elastify", settings)
    _watch(arguments.work)
    verbs = {"oracle": _oracle, "train": _train, "score": _score, "report": _report, "all": _all}
    return settings | verbs[arguments.verb](arguments, scale)


def _images(arguments: argparse.Namespace) -> TinyImages:
    return load_images(arguments.data, seed=SEED, quick=arguments.quick)


def _oracle(arguments: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    work = arguments.work
    if not (work / RESULT).exists():
        with RunLog(work / "log.jsonl") as log:
            train_oracle(arguments.data, _images(arguments), work, log, seed=SEED, epochs=scale.oracle_epochs)
    reference_of(load_oracle(work), work, scale.training).unit_s()  # here, as this step has all cores
    return {"oracle": json.loads((work / "oracle.json").read_text(encoding="utf-8"))}


def _train(arguments: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    arm = Arm(arguments.arm, arguments.seed)
    with RunLog(arguments.work / "log.jsonl") as log:
        train_arm(arm, _images(arguments), arguments.work, log, scale.training)
    return {"arm": json.loads((arguments.work / arm.folder / FIGURES).read_text(encoding="utf-8"))}


def _score(arguments: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Points of every trained arm and of networks that are quantised; of ours also at the latency of each network."""
    work, images = arguments.work, _images(arguments)
    trained = _trained(work)
    made_for_one = [arm for arm in trained if arm.fraction is not None]
    plain = {work: GRAPH} | {work / arm.folder: PLAIN for arm in made_for_one}
    with RunLog(work / "log.jsonl") as log:
        for arm in made_for_one:
            score_arm(arm, images, work, (), scale.effort, SEED, log)
        for folder, name in plain.items():
            score_quantised(folder, (folder / name).read_bytes(), images, work, scale.effort.runs, log)
        rivals = [*(work / arm.folder for arm in made_for_one), *map(quantised_folder, plain)]
        theirs = [point["ratio"] for folder in rivals for point in kept_points(folder).values()]
        for arm in (arm for arm in trained if arm.fraction is None):
            further = theirs if arm.name == OURS else ()
            score_arm(arm, images, work, scale.fractions, scale.effort, SEED, log, further=further)
    return _known(work, images, scale)


def _report(arguments: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """What is scored so far; nothing is trained or scored."""
    return _known(arguments.work, _images(arguments), scale)


def _known(work: Path, images: TinyImages, scale: Scale) -> dict[str, Any]:
    result = report(work, _trained(work), scale.fractions, oracle_right(images, work))
    write_atomically(work / "result.json", json.dumps(result, indent=1).encode())
    return result


def _trained(work: Path) -> list[Arm]:
    if not (work / RESULT).exists():
        raise StateError(f"there is no oracle in {work}", hint="train it first: elastify.py oracle")
    described = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob(f"*/{FIGURES}"))]
    return [Arm(about["arm"], about["seed"]) for about in described]


def _all(arguments: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Each missing step in a process of its own; an arm that fails is named at the end, and the others go on."""
    failed: list[str] = []
    if not (arguments.work / RESULT).exists() and _child(arguments, "oracle"):
        raise BuildError("the oracle failed", hint="its message is above")
    for arm in scale.arms:
        if not (arguments.work / arm.folder / FIGURES).exists():
            code = _child(arguments, "train", arm.name, "--seed", str(arm.seed))
            if code or _child(arguments, "score"):
                failed.append(arm.folder)
    if _child(arguments, "score"):
        failed.append("score")
    if failed:
        raise BuildError(f"these failed: {', '.join(failed)}", hint="their messages are above; the others are kept")
    return dict(json.loads((arguments.work / "result.json").read_text(encoding="utf-8")))


def _child(arguments: argparse.Namespace, *words: str) -> int:
    """Run one step; its exit code. Stopped with it where this process is stopped."""
    command = [sys.executable, __file__, *words, "--work", str(arguments.work), "--data", str(arguments.data)]
    command += ["--minutes", str(arguments.minutes)] if arguments.minutes else []
    command += ["--quick"] if arguments.quick else []
    command += ["--batch-size", str(arguments.batch_size), "--device", arguments.device]
    print(f"{time.strftime('%H:%M:%S')} {' '.join(words)}", file=sys.stderr, flush=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            if not (arguments.work / STOP).exists():  # which the step sees by itself
                process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _watch(work: Path) -> None:
    """Interrupt this process, as Ctrl-C would, when the file STOP appears in the work folder."""
    main = threading.main_thread().ident
    assert main is not None

    def look() -> None:
        while not (work / STOP).exists():
            time.sleep(STOP_POLL_S)
        print(f"stopped by the file {STOP}; delete it and run again to go on", file=sys.stderr)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=look, daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal stops the run; later ones must not disturb it while it writes its checkpoint."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _main(arguments: argparse.Namespace) -> int:
    for each in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in the background with both ignored
        signal.signal(each, _interrupt)
    try:
        return common.run("elastify", _bench, arguments, alone=False)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(_main(_arguments()))
