//! Counters and gauges, under vLLM's names where they mean the same.

mod process;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::engine::{Done, Event, Failure, Finish};

/// Everything that the engine counts. Cheap to update from any thread.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Sequences in slots.
    pub running: Gauge,
    /// Requests that wait for a slot.
    pub waiting: Gauge,
    /// Sequences without a slot whose answers are not read.
    pub parked: Gauge,
    /// How often a sequence gave up its slot because its answer was not read.
    pub parkings: Counter,
    /// Tokens of parked sequences that had to be computed again.
    pub refed_tokens: Counter,
    /// Share of the slots' token room that is in use.
    pub kv_usage: Gauge<f64, AtomicU64>,
    /// Prompt tokens that were looked up in the cache.
    pub cache_queries: Counter,
    /// Those whose state was found.
    pub cache_hits: Counter,
    /// Prompt tokens that some cached sequence had, and were computed again because no state was kept there.
    pub cache_recomputed: Counter,
    /// Bytes of cached states.
    pub cache_bytes: Gauge,
    /// Cached states.
    pub cache_states: Gauge,
    /// Cached states that were given up for others.
    pub cache_evictions: Counter,
    /// Prompt tokens of requests that were begun.
    pub prompt_tokens: Counter,
    /// Prompt tokens that went through the model.
    pub prefill_tokens: Counter,
    /// New tokens.
    pub generation_tokens: Counter,
    /// Requests that ended, by how.
    pub finished: Family<Reason, Counter>,
    /// Requests that were turned away because too many wait.
    pub refused: Counter,
    /// Steps of the engine.
    pub steps: Counter,
    /// Seconds that the model computed.
    pub busy_seconds: Counter<f64, AtomicU64>,
    /// Bytes of weights, states and caches that steps had to read at least.
    pub bytes_read: Counter,
    /// Floating-point operations of all steps.
    pub flops: Counter,
    /// Prompt tokens per request.
    pub prompt_length: Histogram,
    /// New tokens per request.
    pub generation_length: Histogram,
    /// From arrival to the first token.
    pub time_to_first_token: Histogram,
    /// Between two tokens of a sequence.
    pub inter_token: Histogram,
    /// From arrival to the end.
    pub latency: Histogram,
    /// From arrival to a slot.
    pub queue_time: Histogram,
    /// From a slot to the first token.
    pub prefill_time: Histogram,
    /// From the first token to the last.
    pub decode_time: Histogram,
    /// Mean time that a request waited lately, in microseconds.
    lately: AtomicU64,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// `stop`, `length`, `abort` or `error`.
    pub finished_reason: &'static str,
}

impl Reason {
    /// Nobody waited for the end.
    pub(crate) const ABORT: Reason = Reason { finished_reason: "abort" };

    /// That of an answer's last event.
    pub(crate) fn of(event: &Event) -> Reason {
        let finished_reason = match event {
            Event::Done(Done { finish: Finish::End | Finish::Stop(_), .. }) => "stop",
            Event::Done(Done { finish: Finish::Length, .. }) => "length",
            Event::Failed(Failure::ShuttingDown | Failure::Stalled) => "abort",
            _ => "error",
        };
        Reason { finished_reason }
    }
}

fn seconds() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    ])
}

fn tokens() -> Histogram {
    Histogram::new([1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Metrics {
            registry: Mutex::new(Registry::default()),
            running: Gauge::default(),
            waiting: Gauge::default(),
            parked: Gauge::default(),
            parkings: Counter::default(),
            refed_tokens: Counter::default(),
            kv_usage: Gauge::default(),
            cache_queries: Counter::default(),
            cache_hits: Counter::default(),
            cache_recomputed: Counter::default(),
            cache_bytes: Gauge::default(),
            cache_states: Gauge::default(),
            cache_evictions: Counter::default(),
            prompt_tokens: Counter::default(),
            prefill_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            finished: Family::default(),
            refused: Counter::default(),
            steps: Counter::default(),
            busy_seconds: Counter::default(),
            bytes_read: Counter::default(),
            flops: Counter::default(),
            prompt_length: tokens(),
            generation_length: tokens(),
            time_to_first_token: seconds(),
            inter_token: seconds(),
            latency: seconds(),
            queue_time: seconds(),
            prefill_time: seconds(),
            decode_time: seconds(),
            lately: AtomicU64::new(0),
        };
        metrics.register_all();
        metrics
    }
}

impl Metrics {
    fn register_all(&self) {
        self.with_registry(|r| {
            r.register_collector(Box::new(process::Process));
            r.register("vllm:num_requests_running", "Sequences in slots", self.running.clone());
            r.register("vllm:num_requests_waiting", "Requests that wait for a slot", self.waiting.clone());
            r.register(
                "vllm:kv_cache_usage_perc",
                "Share of the slots' token room in use",
                self.kv_usage.clone(),
            );
            r.register("vllm:prefix_cache_queries", "Prompt tokens looked up", self.cache_queries.clone());
            r.register(
                "vllm:prefix_cache_hits",
                "Prompt tokens whose state was found",
                self.cache_hits.clone(),
            );
            r.register("vllm:prompt_tokens", "Prompt tokens of requests begun", self.prompt_tokens.clone());
            r.register("vllm:generation_tokens", "New tokens", self.generation_tokens.clone());
            r.register("vllm:request_success", "Requests ended, by how", self.finished.clone());
            r.register("vllm:request_prompt_tokens", "Prompt tokens per request", self.prompt_length.clone());
            r.register(
                "vllm:request_generation_tokens",
                "New tokens per request",
                self.generation_length.clone(),
            );
            r.register(
                "vllm:time_to_first_token_seconds",
                "From arrival to the first token",
                self.time_to_first_token.clone(),
            );
            r.register("vllm:inter_token_latency_seconds", "Between two tokens", self.inter_token.clone());
            r.register("vllm:e2e_request_latency_seconds", "From arrival to the end", self.latency.clone());
            r.register("vllm:request_queue_time_seconds", "From arrival to a slot", self.queue_time.clone());
            r.register(
                "vllm:request_prefill_time_seconds",
                "From a slot to the first token",
                self.prefill_time.clone(),
            );
            r.register(
                "vllm:request_decode_time_seconds",
                "From the first token to the last",
                self.decode_time.clone(),
            );
            r.register(
                "zamba_cache_recomputed_tokens",
                "Prompt tokens of known beginnings computed again for want of a state",
                self.cache_recomputed.clone(),
            );
            r.register("zamba_cache_bytes", "Bytes of cached states", self.cache_bytes.clone());
            r.register("zamba_cache_states", "Cached states", self.cache_states.clone());
            r.register("zamba_cache_evictions", "Cached states given up", self.cache_evictions.clone());
            r.register("zamba_parked", "Sequences without a slot that are not read", self.parked.clone());
            r.register("zamba_parkings", "Slots given up for want of a reader", self.parkings.clone());
            r.register(
                "zamba_refed_tokens",
                "Tokens of parked sequences computed again",
                self.refed_tokens.clone(),
            );
            r.register("zamba_prefill_tokens", "Prompt tokens computed", self.prefill_tokens.clone());
            r.register("zamba_refused", "Requests turned away", self.refused.clone());
            r.register("zamba_steps", "Steps of the engine", self.steps.clone());
            r.register("zamba_busy_seconds", "Seconds that the model computed", self.busy_seconds.clone());
            r.register("zamba_bytes_read", "Bytes that steps had to read at least", self.bytes_read.clone());
            r.register("zamba_flops", "Floating-point operations", self.flops.clone());
        });
    }

    /// Adds more to what [`Metrics::text`] gives.
    pub fn with_registry(&self, f: impl FnOnce(&mut Registry)) {
        f(&mut self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// All of it in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.with_registry(|r| {
            // Writing to a string cannot fail.
            let _ = prometheus_client::encoding::text::encode(&mut text, r);
        });
        text
    }

    /// Notes how long a request waited for its slot.
    pub(crate) fn waited(&self, time: Duration) {
        self.queue_time.observe(time.as_secs_f64());
        let new = time.as_micros() as u64;
        let old = self.lately.load(Ordering::Relaxed);
        self.lately.store(old - old / 8 + new / 8, Ordering::Relaxed);
    }

    /// About how long it takes for a full queue to move on, in seconds.
    pub(crate) fn seconds_to_drain(&self) -> f64 {
        self.lately.load(Ordering::Relaxed) as f64 / 1e6
    }
}
