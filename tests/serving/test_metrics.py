"""What Prometheus reads of answers, and the line about each request."""

from prometheus_client.parser import text_string_to_metric_families

from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.core.events import GenerationStats, ReadingPrompt, Token
from mllama_cli.engine.batch.loop import LoopStats
from mllama_cli.serving.metrics import Metrics

DONE = GenerationStats("stop", 7, 0, 1, 4, 0.1, 0.1, 0.1)


def read(metrics: Metrics) -> dict[str, float]:
    """Return each sample's value by its name, with its labels other than the model."""
    samples = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "sketch"
            samples[" ".join([sample.name, *sample.labels.values()])] = sample.value
    return samples


def test_an_answer_is_measured_from_its_events() -> None:
    metrics = Metrics("sketch", lambda: LoopStats(4, 2, 3, images_encoded=5, image_cache_hits=6), 256)
    recorder = metrics.begin(7)
    for event in (ReadingPrompt(7, 7), Token(1, "a"), Token(2, "b"), Token(3, "c"), DONE):
        recorder(event)
    recorder.cancelled()  # too late: it has ended
    read_back = read(metrics)
    assert read_back["mllama:prompt_tokens_total"] == 7
    assert read_back["mllama:generation_tokens_total"] == 4
    assert read_back["mllama:time_to_first_token_seconds_count"] == 1
    assert read_back["mllama:time_per_output_token_seconds_count"] == 3
    assert read_back["mllama:e2e_request_latency_seconds_count"] == 1
    assert read_back["mllama:request_success_total stop"] == 1
    assert read_back["mllama:request_success_total abort"] == 0
    loop = {
        name: read_back[f"mllama:{name}"] for name in ("slots", "slots_busy", "queue_limit", "num_requests_waiting")
    }
    assert loop == {"slots": 4, "slots_busy": 2, "queue_limit": 256, "num_requests_waiting": 3}
    assert read_back["mllama:images_encoded_total"] == 5
    assert read_back["mllama:image_cache_hits_total"] == 6


def test_answers_that_do_not_end_well_are_counted_apart() -> None:
    metrics = Metrics("sketch", lambda: LoopStats(1, 0, 0), 1)
    left = metrics.begin(9)
    left(Token(1, "a"))
    left.cancelled()
    metrics.begin(9)(MemoryShortageError("no memory"))
    read_back = read(metrics)
    assert read_back["mllama:request_success_total abort"] == 1
    assert read_back["mllama:request_success_total error"] == 1
    assert read_back["mllama:generation_tokens_total"] == 1
    assert read_back["mllama:prompt_tokens_total"] == 9
    assert read_back["mllama:e2e_request_latency_seconds_count"] == 0


def test_two_servers_in_one_process_do_not_share_counts() -> None:
    first, second = (Metrics("sketch", lambda: LoopStats(1, 0, 0), 1) for _ in range(2))
    first.begin(1)(Token(1, "a"))
    assert read(first)["mllama:generation_tokens_total"] == 1
    assert read(second)["mllama:generation_tokens_total"] == 0
