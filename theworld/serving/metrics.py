"""What `/metrics` reports, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, with the process's own memory, time and files."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self.requests = Counter(
            "theworld_requests", "Requests by address and status; 499 left early", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "theworld_request_seconds", "From request to answer", ["path"], buckets=SECONDS, registry=registry
        )
        self.in_progress = Gauge("theworld_requests_in_progress", "Requests that wait or run", registry=registry)
        self.waiting = Gauge("theworld_jobs_waiting", "Requests that wait for the model", registry=registry)
        self.running = Gauge("theworld_jobs_running", "Requests that the model works on", registry=registry)
        self.latents = Gauge("theworld_latent_cache_bytes", "Latents of earlier images in memory", registry=registry)
        self.batch_size = Histogram(
            "theworld_batch_size", "Requests that are answered at once", buckets=SIZES, registry=registry
        )
        self.tokens = Counter("theworld_tokens", "Tokens of prompts and answers", ["kind"], registry=registry)
        self.ready = Gauge("theworld_ready", "1 if the model is loaded", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
