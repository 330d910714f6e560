"""`EdgeModel`: load, answer frames, adapt, swap, report. It wires; what decides, measures or searches is below."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_runtime import sense
from edge_runtime.adaptation import AdaptStatus
from edge_runtime.adaptation.checkpoint import Checkpoints
from edge_runtime.adaptation.control import Control
from edge_runtime.adaptation.memory import Memory, memory_name
from edge_runtime.backends import export_subnet, runtime_versions
from edge_runtime.backends.base import Array, Session, SessionOptions, random_inputs
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, BundleError, InputError, UsageError
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.inputs import Frame, SampleBuffer, Samples, check_finite, check_labels, fit, normalise
from edge_runtime.measure import Clock, LatencyModel
from edge_runtime.model.compile import open_quickest
from edge_runtime.model.guard import Answer, OutputGuard
from edge_runtime.model.jobs import Labels, rail_for
from edge_runtime.model.learned import Learned
from edge_runtime.model.loop import Loop
from edge_runtime.model.meter import FrameMeter
from edge_runtime.model.records import Prediction, Stats
from edge_runtime.model.search import Searches
from edge_runtime.objectives import Budget, Frontier
from edge_runtime.policy import AdaptationPolicy
from edge_runtime.profiles import DeviceProfile, choose_profile, load_profile
from edge_runtime.state import StateDir, write_file
from edge_runtime.swap import ActiveGates, Swap

__all__ = ["EdgeModel"]


class EdgeModel:
    """One bundle, open on this machine. Every method may be called from any thread.

    Latencies and budgets are those of the model's run at batch 1, as `nnf-edge benchmark` measures it; what a frame
    takes besides is reported in `stats`.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        options: SessionOptions,
        *,
        profile: DeviceProfile,
        state: StateDir,
        budget: Budget | None = None,
        buffer_frames: int = 0,
        seed: int = 0,
        policy: AdaptationPolicy | None = None,
        versions: Mapping[str, str] | None = None,
        table: LatencyModel | None = None,
        form: str = "",
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        """Wire an open session; applications use `load`.

        `table` spares the calibration where it is known already, `form` says why the session has the form it has.
        """
        self.bundle = bundle
        """What was loaded."""
        self.profile = profile
        """The device profile in force."""
        self._session, self._options, self._state, self._seed = session, options, state, seed
        self._clock_ns = clock_ns
        self._spec = bundle.manifest.preprocessing
        self._input = bundle.manifest.inputs[0].name
        self._logits = bundle.manifest.outputs[0].name
        self._classes = bundle.manifest.task.class_names
        self._process, self._closed = os.getpid(), False
        self._buffer = SampleBuffer(buffer_frames, self._spec.height, self._spec.width, seed)
        self._meter = FrameMeter()
        self._guard = OutputGuard(session, self.space.default, clock_ns)
        self._active = ActiveGates(self.space.default, follow=session.prefer)
        self._form = form
        parts = (session.name, options.key(), sense.cpu_features_key(), str(sorted((versions or {}).items())))
        name = memory_name(bundle.digest, *parts)
        self._learned = Learned(bundle, session, options, state=state, name=name, table=table, seed=seed)
        memory = self._learned.memory
        self._control = Control(policy or AdaptationPolicy(), memory.unusable if memory else frozenset())
        self._begin(memory, budget)
        self._checkpoints = Checkpoints(state, f"search-{name}")
        self._searches = Searches(
            bundle,
            session,
            active=self._active,
            control=self._control,
            learned=self._learned,
            checkpoints=self._checkpoints,
            budget=budget or (memory and memory.budget) or profile.budget,
            duty=profile.limits.adapt_cpu_percent / 100,
            threads=options.threads,
            clock_ns=clock_ns,
        )
        self._loop = Loop(
            active=self._active,
            control=self._control,
            searches=self._searches,
            buffer=self._buffer,
            limits=profile.limits,
            seed=seed,
            clock_ns=clock_ns,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        budget: Budget | None = None,
        profile: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        buffer_frames: int = 0,
        state_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> EdgeModel:
        """Open a bundle: verify it, load it, warm it up, and take up the last adaptation on this machine.

        Args:
            path: A `.nnf` file or a bundle directory.
            budget: What the application can afford. None takes the budget of the remembered adaptation, else the
                profile's; one equal to the remembered takes up that outcome, else `Budget()` asks for the full subnet.
            profile: Name or path of a device profile; None chooses by this machine.
            threads: Threads inside an operator; None takes the profile's, cut to the CPUs that the process may use.
            providers: Execution providers of onnxruntime in order of preference; None means the CPU.
            buffer_frames: Frames to keep for adaptation, in memory only; 0 keeps none.
            state_dir: Where gates, frontier and latency table are kept; None means the user's state directory, and that
                the model runs without a cache where it cannot be written.
            seed: Of every random decision.

        Raises:
            BundleError: The bundle is missing, damaged or refused.
            BackendError: onnxruntime is missing or lacks a provider.
            StateError: `state_dir` was named and cannot be written.
            ProfileError: The profile is unknown or invalid.
            UsageError: Another argument cannot be meant, or the budget limits the energy and there is no power rail.
        """
        _check_budget(budget)
        state = StateDir.open(state_dir)
        bundle = Bundle.read(path)
        chosen = _profile(profile)
        count = min(chosen.threads, sense.cpu_threads()) if threads is None else threads
        named = providers if isinstance(providers, str) else tuple(providers or SessionOptions().providers)
        options = SessionOptions(count, named)  # type: ignore[arg-type]  # it refuses a word
        versions = runtime_versions()
        session, form = open_quickest(bundle, options, state, versions)
        if session.maps_weights:
            bundle = bundle.without_contents()
        try:
            return cls(
                bundle,
                session,
                options,
                profile=chosen,
                state=state,
                budget=budget,
                buffer_frames=buffer_frames,
                seed=seed,
                versions=versions,
                form=form,
            )
        except BaseException:
            session.close()
            raise

    def _begin(self, memory: Memory | None, budget: Budget | None) -> None:
        """Warm up, and start with the remembered subnet where there is one."""
        warm = random_inputs(self._session.inputs, seed=self._seed)
        self._guard.run(warm, self.space.default)
        self._session.prefer(self.space.default)
        if memory is None or memory.frontier is None:
            return
        scores = () if memory.active is None else (memory.active,)
        self._control.learn(memory.frontier, scores)
        start = memory.start(budget)
        if start is not None:
            self._active.swap(*start)
            self._guard.run(warm, start[0])

    @property
    def space(self) -> GateSpace:
        """The gates that this model has."""
        return self.bundle.manifest.space

    @property
    def gates(self) -> Gates:
        """The active subnet."""
        return self._active.gates

    @property
    def frontier(self) -> Frontier | None:
        """The subnets worth having on this machine and data; None before the first search."""
        return self._control.frontier

    @property
    def budget(self) -> Budget:
        """The budget in force."""
        return self._searches.budget

    @property
    def threads(self) -> int:
        """Threads inside an operator."""
        return self._options.threads

    @property
    def search_seconds(self) -> float:
        """Time limit of `adapt(..., wait=True)`, seconds; the finalists are measured beyond it if need be."""
        return self._loop.search_seconds

    def __call__(self, frame: Frame) -> Prediction:
        """Answer one frame: uint8 [H, W, 3] in RGB of any size, by the manifest's preprocessing.

        Raises:
            InputError: Not such an array.
            BackendError: Not even the full subnet gives a usable output.
        """
        began_ns = self._clock_ns()
        self._check_open()
        image = fit(frame, self._spec)
        answer = self._answer({self._input: normalise(image, self._spec)[None]}, self._active.lease().gates)
        outputs = {name: output[0] for name, output in answer.outputs.items()}
        logits = outputs[self._logits]
        best = int(logits.argmax())
        confidence = 1.0 / float(np.exp(logits - logits[best]).sum())
        self._buffer.add(image)
        ended_ns = self._clock_ns()
        self._meter.add(answer.run_ns, ended_ns - began_ns - answer.run_ns, self._searches.limit_ms)
        self._searches.pace.frame(began_ns / 1e9, ended_ns / 1e9)
        return Prediction(
            outputs, self._classes[best], confidence, answer.gates, answer.run_ns / 1e6, bool(answer.fault)
        )

    def infer(self, x: Array | Mapping[str, Array], gates: Gates | str | None = None) -> dict[str, Array]:
        """Run prepared tensors, batches too.

        Args:
            x: The image input float32 [N, 3, H, W], or every input by name.
            gates: The subnet for this call, or its text form; None means the active one.

        Returns:
            Every output by name, with the batch dimension.

        Raises:
            InputError: A wrong name, dtype or shape, or NaN or infinity in an input.
            GateError: No such subnet, or gates of another model.
            BackendError: Not even the full subnet gives a usable output.
        """
        began_ns = self._clock_ns()
        self._check_open()
        inputs = dict(x) if isinstance(x, Mapping) else {self._input: x}
        for name, array in inputs.items():
            if isinstance(array, np.ndarray):  # the session names what is no array
                check_finite(name, array)
        answer = self._answer(inputs, self._active.lease().gates if gates is None else self._gates(gates))
        self._meter.add(answer.run_ns, None, None)
        self._searches.pace.frame(began_ns / 1e9, self._clock_ns() / 1e9)
        return answer.outputs

    def _answer(self, inputs: Mapping[str, Array], gates: Gates) -> Answer:
        answer = self._guard.run(inputs, gates)
        if answer.to_blame:
            self._searches.forget(gates)
            self._active.swap(answer.gates, f"unusable output of {gates}: {answer.fault}", expected=gates)
        elif not answer.fault and len(next(iter(inputs.values()))) == 1:
            seen = self._clock_ns() / 1e9, answer.run_ns / 1e6, gates
            self._control.observe(*seen)
            self._searches.observe(*seen)
        return answer

    def adapt(
        self,
        samples: Samples | Sequence[Frame] | npt.NDArray[np.uint8] | None = None,
        labels: Sequence[int] | npt.NDArray[np.int64] | None = None,
        *,
        budget: Budget | None = None,
        wait: bool = False,
        seconds: float | None = None,
        tell: Callable[[AdaptStatus], None] | None = None,
    ) -> AdaptStatus:
        """With samples, search for the best subnet within the budget; without, one tick of the loop.

        A tick takes microseconds: it moves along the frontier by the policy, and starts a search in the background when
        the budget limits the time, the buffer holds 64 frames (or is full), and none was made for ten minutes.

        Args:
            samples: uint8 frames [H, W, 3] of any size, or `Samples`. They stay in memory, and only during the search.
            labels: Class index of each; None searches by agreement with the full subnet.
            budget: A new budget from now on; None keeps the present one.
            wait: Search now and return when it is done; else it runs in the background, within the profile's share of
                one CPU. Without samples: wait for the search that runs, or search the buffer. While one thread searches
                now, another that gives samples waits for it.
            seconds: Time limit of the search; None means `search_seconds`. One that runs already keeps its own.
            tell: Called with the present status after each slice of a search that is waited for, or every tenth of a
                second of one that runs already.

        Raises:
            InputError: Samples or labels that cannot be used, or nothing to wait for.
            UsageError: The budget is none, or limits the energy, and this machine shows no power rail; or the model was
                closed while this waited.
            BudgetError: Waited for, and no subnet meets the budget; names the fastest one and its measured latency,
                where it is not the memory that does not suffice.
        """
        self._check_open()
        _check_budget(budget)
        if budget is not None:
            self._searches.set_budget(budget)
        if samples is None and labels is not None:
            raise InputError("labels were given without their images", hint="give samples too")
        if samples is None and not wait:
            return self._loop.tick()
        if samples is None:
            status = self._loop.wait(seconds, tell or _silent)
            self._check_open()  # another thread may have ended the search that was waited for
            return status
        images, targets = self._gather(samples, labels)
        try:
            return self._loop.search(images, targets, wait=wait, seconds=seconds, tell=tell or _silent)
        except BackendError:
            self._check_open()  # another thread may have closed the session under the search
            raise

    def _gather(
        self,
        samples: Samples | Sequence[Frame] | npt.NDArray[np.uint8],
        labels: Sequence[int] | npt.NDArray[np.int64] | None,
    ) -> tuple[Frame, Labels | None]:
        """Images at the model's input size, and their labels."""
        if isinstance(samples, Samples):
            frames: Sequence[Frame] = samples.images
            labels = samples.labels if labels is None else labels
        else:
            frames = list(samples)
        if not frames:
            raise InputError("there are no images in the samples", hint="give at least one, better 64 or more")
        targets = None if labels is None else check_labels(labels, len(frames), len(self._classes))
        return np.stack([fit(frame, self._spec) for frame in frames]), targets

    def swap(self, gates: Gates | str, reason: str = "asked for") -> Swap | None:
        """Make a subnet the active one from the next frame on; the policy may move on from it when the loop ticks.

        Args:
            gates: A vector of this model, its text form, or ``full``.
            reason: For the history.

        Returns:
            The record of the swap; None where that subnet was active already.

        Raises:
            GateError: No such subnet.
        """
        self._check_open()
        return self._active.swap(self._gates(gates), reason)

    def _gates(self, gates: Gates | str) -> Gates:
        return self.space.parse(gates) if isinstance(gates, str) else gates

    def export(self, path: str | os.PathLike[str], gates: Gates | str | None = None) -> None:
        """Write one subnet as a plain static ONNX file, which needs no nnf-edge: standard operators, weights inside.

        Args:
            path: The file; it is replaced atomically, and only by a model that answers as the gated graph does.
            gates: The subnet, or its text form; None means the active one.

        Raises:
            GateError: No such subnet.
            BundleError: The bundle is not where it was loaded from, or was changed.
            BackendError: The exported model answers otherwise.
            StateError: The file cannot be written.
        """
        self._check_open()
        chosen = self._active.lease().gates if gates is None else self._gates(gates)
        bundle = self.bundle if self.bundle.model_bytes else Bundle.read(self.bundle.source)
        if bundle.digest != self.bundle.digest:
            raise BundleError(f"{bundle.source!r} is another bundle than when it was loaded", hint="load it again")
        write_file(path, export_subnet(bundle, chosen))

    def stats(self) -> Stats:
        """What happened since the model was loaded."""
        p50, p95, p99 = self._meter.percentiles_ms(50, 95, 99)
        memory = sense.process_memory()
        lease = self._active.lease()
        state = self._learned.note or self._checkpoints.note or self._state.note
        return Stats(
            frames=self._meter.frames,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            overhead_p50_ms=self._meter.overhead_ms(),
            deadline_misses=self._meter.misses,
            limit_ms=self._searches.limit_ms,
            budget=self._searches.budget.to_json(),
            active=str(lease.gates),
            load=self._control.load,
            drift=self._learned.drift.factor,
            swaps_total=lease.generation,
            swaps=self._active.history,
            bad_outputs=self._guard.bad_outputs,
            search=self._searches.progress().phase,
            buffered_frames=len(self._buffer),
            rss_bytes=None if isinstance(memory.rss_bytes, sense.Unknown) else memory.rss_bytes,
            peak_bytes=None if isinstance(memory.peak_bytes, sense.Unknown) else memory.peak_bytes,
            backend=self._session.name,
            form=self._form,
            threads=self._options.threads,
            profile=self.profile.name,
            bundle=self.bundle.digest,
            state=state,
        )

    def close(self) -> None:
        """End the search within 2 s, overwrite the kept frames with zeros, and give the memory back. Twice is fine."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._searches.stop()
        self._buffer.close()
        self._session.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the model is closed", hint="load it again")
        if os.getpid() != self._process:
            raise UsageError(
                "the model was loaded before this process was forked, and its threads are not in it",
                hint="load it in the child, or start processes by 'spawn'",
            )

    def __enter__(self) -> EdgeModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _check_budget(budget: Budget | None) -> None:
    """Raise `UsageError` for what is no budget, and for one on the energy where no power rail can be read."""
    if budget is not None and not isinstance(budget, Budget):
        raise UsageError(f"budget is {type(budget).__name__}", hint="write Budget(latency_ms=33)")
    if budget is not None:
        rail_for(budget)


def _silent(status: AdaptStatus) -> None:
    """Nobody wants to know."""


def _profile(name_or_path: str | os.PathLike[str] | None) -> DeviceProfile:
    if name_or_path is not None:
        return load_profile(name_or_path)
    board = sense.board()
    return choose_profile(platform.machine(), "" if isinstance(board, sense.Unknown) else board)
