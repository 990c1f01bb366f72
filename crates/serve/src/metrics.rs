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

/// Declares counts: of each its field, type, first value, name and meaning, in the order in which they are shown. Fields
/// before them are the struct's own.
macro_rules! counts {
    (
        $(#[$about:meta])*
        $visible:vis struct $name:ident { $($(#[$own_about:meta])* $own:ident: $own_type:ty = $own_first:expr;)* }
        counts { $($field:ident: $type:ty = $first:expr, $key:literal, $meaning:literal;)* }
    ) => {
        $(#[$about])*
        $visible struct $name {
            $($(#[$own_about])* $own: $own_type,)*
            $(#[doc = $meaning] $visible $field: $type,)*
        }

        impl $name {
            fn first() -> Self {
                $name { $($own: $own_first,)* $($field: $first,)* }
            }

            fn register(&self, registry: &mut prometheus_client::registry::Registry) {
                $(registry.register($key, $meaning, self.$field.clone());)*
            }
        }
    };
}
pub(crate) use counts;

counts! {
    /// Everything that the engine counts. Cheap to update from any thread.
    pub struct Metrics {
        registry: Mutex<Registry> = Mutex::new(Registry::default());
        /// Mean time that a request waited lately, in microseconds.
        lately: AtomicU64 = AtomicU64::new(0);
    } counts {
        running: Gauge = Gauge::default(), "vllm:num_requests_running", "Sequences in slots";
        waiting: Gauge = Gauge::default(), "vllm:num_requests_waiting", "Requests that wait for a slot";
        kv_usage: Gauge<f64, AtomicU64> = Gauge::default(), "vllm:kv_cache_usage_perc", "Share of the slots' token room in use";
        cache_queries: Counter = Counter::default(), "vllm:prefix_cache_queries", "Prompt tokens looked up";
        cache_hits: Counter = Counter::default(), "vllm:prefix_cache_hits", "Prompt tokens whose state was found";
        prompt_tokens: Counter = Counter::default(), "vllm:prompt_tokens", "Prompt tokens of requests begun";
        generation_tokens: Counter = Counter::default(), "vllm:generation_tokens", "New tokens";
        finished: Family<Reason, Counter> = Family::default(), "vllm:request_success", "Requests ended, by how";
        prompt_length: Histogram = tokens(), "vllm:request_prompt_tokens", "Prompt tokens per request";
        generation_length: Histogram = tokens(), "vllm:request_generation_tokens", "New tokens per request";
        time_to_first_token: Histogram = seconds(), "vllm:time_to_first_token_seconds", "From arrival to the first token";
        inter_token: Histogram = seconds(), "vllm:inter_token_latency_seconds", "Between two tokens";
        latency: Histogram = seconds(), "vllm:e2e_request_latency_seconds", "From arrival to the end";
        queue_time: Histogram = seconds(), "vllm:request_queue_time_seconds", "From arrival to a slot";
        prefill_time: Histogram = seconds(), "vllm:request_prefill_time_seconds", "From a slot to the first token";
        decode_time: Histogram = seconds(), "vllm:request_decode_time_seconds", "From the first token to the last";
        cache_recomputed: Counter = Counter::default(), "zamba_cache_recomputed_tokens", "Prompt tokens of known beginnings computed again for want of a state";
        cache_bytes: Gauge = Gauge::default(), "zamba_cache_bytes", "Bytes of cached states";
        cache_states: Gauge = Gauge::default(), "zamba_cache_states", "Cached states";
        cache_evictions: Counter = Counter::default(), "zamba_cache_evictions", "Cached states given up";
        parked: Gauge = Gauge::default(), "zamba_parked", "Sequences without a slot that are not read";
        parkings: Counter = Counter::default(), "zamba_parkings", "Slots given up for want of a reader";
        refed_tokens: Counter = Counter::default(), "zamba_refed_tokens", "Tokens of parked sequences computed again";
        prefill_tokens: Counter = Counter::default(), "zamba_prefill_tokens", "Prompt tokens computed";
        refused: Counter = Counter::default(), "zamba_refused", "Requests turned away";
        steps: Counter = Counter::default(), "zamba_steps", "Steps of the engine";
        busy_seconds: Counter<f64, AtomicU64> = Counter::default(), "zamba_busy_seconds", "Seconds that the model computed";
        bytes_read: Counter = Counter::default(), "zamba_bytes_read", "Bytes that steps had to read at least";
        flops: Counter = Counter::default(), "zamba_flops", "Floating-point operations";
    }
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
        let metrics = Metrics::first();
        metrics.with_registry(|registry| {
            registry.register_collector(Box::new(process::Process));
            metrics.register(registry);
        });
        metrics
    }
}

impl Metrics {
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
