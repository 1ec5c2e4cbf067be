"""Metrics for Prometheus: vLLM's names and meanings with our prefix, so that its dashboards need only the prefix."""

import threading
from collections.abc import Callable, Iterator
from time import perf_counter

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import Event, GenerationStats, Token
from mllama_cli.engine.batch.loop import LoopStats
from mllama_cli.serving.access_log import RequestRecord, current_request

_LABEL = "model_name"
_FINISHED = {"stop": "stop", "stop_string": "stop", "length": "length", "cancelled": "abort"}
_FIRST_TOKEN_BUCKETS = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
)  # fmt: skip
_BETWEEN_TOKENS_BUCKETS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10,
)  # fmt: skip
_WHOLE_ANSWER_BUCKETS = (
    0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
)  # fmt: skip


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        model: the name that every metric is labelled with.
        stats: what the engine loop is doing, read at each scrape.
        max_queue: requests that may wait.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model: str, stats: Callable[[], LoopStats], max_queue: int) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_LoopCollector(model, stats, max_queue))

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            full = Histogram(f"mllama:{name}", help_text, [_LABEL], registry=self.registry, buckets=buckets)
            return full.labels(model)

        def counter(name: str, help_text: str) -> Counter:
            return Counter(f"mllama:{name}", help_text, [_LABEL], registry=self.registry).labels(model)

        self.first_token = histogram(
            "time_to_first_token_seconds", "Time from a request's arrival to its first token.", _FIRST_TOKEN_BUCKETS
        )
        self.between_tokens = histogram(
            "time_per_output_token_seconds", "Time between two tokens of an answer.", _BETWEEN_TOKENS_BUCKETS
        )
        self.whole_answer = histogram(
            "e2e_request_latency_seconds", "Time from a request's arrival to its last token.", _WHOLE_ANSWER_BUCKETS
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, cached ones included.")
        self.generation_tokens = counter("generation_tokens", "Generated tokens.")
        finished = Counter(
            "mllama:request_success",
            "Answers that ended, by reason; abort: the client left.",
            [_LABEL, "finished_reason"],
            registry=self.registry,
        )
        self.finished = {reason: finished.labels(model, reason) for reason in ("stop", "length", "abort", "error")}

    def begin(self, prompt_tokens: int) -> "AnswerRecorder":
        """Return the recorder of one answer, which takes the arrival of the current HTTP request."""
        return AnswerRecorder(self, prompt_tokens, current_request.get() or RequestRecord())

    def page(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class AnswerRecorder:
    """Take what an answer's listener hears, on the engine's thread, and ``cancelled`` on any, where the client left."""

    def __init__(self, metrics: Metrics, prompt_tokens: int, request: RequestRecord) -> None:
        self._metrics, self._request = metrics, request
        self._prompt_tokens, self._generated = prompt_tokens, 0
        self._last_token = 0.0
        self._running = threading.Lock()
        self._running.acquire()

    def __call__(self, event: Event | MllamaError) -> None:
        if isinstance(event, Token):
            self._token(self._generated + 1)
        elif isinstance(event, GenerationStats):
            if event.completion_tokens > self._generated:
                self._token(event.completion_tokens)  # the token that ended the answer has no event
            self._end(_FINISHED[event.finish_reason])
        elif isinstance(event, MllamaError):
            self._end("error")

    def cancelled(self) -> None:
        """End an answer that nobody waits for any more; harmless for one that has ended."""
        self._end("abort")

    def _token(self, count: int) -> None:
        now, metrics = perf_counter(), self._metrics
        if self._last_token:
            metrics.between_tokens.observe(now - self._last_token)
        else:
            metrics.first_token.observe(now - self._request.arrived)
            metrics.prompt_tokens.inc(self._prompt_tokens)
            self._request.prompt_tokens += self._prompt_tokens
        metrics.generation_tokens.inc(count - self._generated)
        self._request.generated_tokens += count - self._generated
        self._generated, self._last_token = count, now

    def _end(self, reason: str) -> None:
        try:
            self._running.release()
        except RuntimeError:  # it has ended already
            return
        self._metrics.finished[reason].inc()
        if reason in ("stop", "length"):
            self._metrics.whole_answer.observe(perf_counter() - self._request.arrived)


class _LoopCollector(Collector):
    """Read the engine loop's own counts at each scrape."""

    def __init__(self, model: str, stats: Callable[[], LoopStats], max_queue: int) -> None:
        self._model, self._stats, self._max_queue = model, stats, max_queue

    def describe(self) -> Iterator[Metric]:
        return iter(())  # names are known without asking a loop that may not have started

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, help_text, value in (
            ("num_requests_running", "Requests that are being answered.", stats.running),
            ("num_requests_waiting", "Requests that wait for a slot.", stats.waiting),
            ("slots", "Requests that can be answered at once.", stats.slots),
            ("slots_busy", "Slots that a request occupies.", stats.running),
            ("queue_limit", "Requests that may wait; more are refused.", self._max_queue),
            ("cache_bytes", "Bytes of keys and values in use or kept for reuse.", stats.cache_bytes),
        ):
            gauge = GaugeMetricFamily(f"mllama:{name}", help_text, labels=[_LABEL])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, help_text, value in (
            ("images_encoded", "Images that the vision tower has encoded.", stats.images_encoded),
            ("image_cache_hits", "Images that were encoded already.", stats.image_cache_hits),
        ):
            counter = CounterMetricFamily(f"mllama:{name}", help_text, labels=[_LABEL])
            counter.add_metric([self._model], value)
            yield counter
