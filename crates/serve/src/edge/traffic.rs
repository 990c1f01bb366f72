//! Counts of connections and requests.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::{Metrics, counts};

counts! {
    /// What the edge counts.
    #[derive(Debug)]
    pub(crate) struct Traffic {} counts {
        requests: Family<Kind, Counter> = Family::default(), "http_requests", "Requests answered";
        durations: Family<Place, Histogram, fn() -> Histogram> = Family::new_with_constructor(seconds), "http_request_duration_seconds", "From the head of a request to the end of its answer";
        in_flight: Gauge = Gauge::default(), "http_requests_in_flight", "Requests under way";
        bytes_received: Counter<u64, AtomicU64> = Counter::default(), "http_request_body_bytes", "Bytes of bodies received";
        bytes_sent: Counter<u64, AtomicU64> = Counter::default(), "http_response_body_bytes", "Bytes of bodies sent";
        connections: Gauge = Gauge::default(), "zamba_http_connections", "Connections open";
        accepted: Counter = Counter::default(), "zamba_http_connections_accepted", "Connections accepted";
        accept_errors: Counter = Counter::default(), "zamba_http_accept_errors", "Times that no connection could be accepted, as for want of descriptors";
        cuts: Family<Reason, Counter> = Family::default(), "zamba_http_connections_cut", "Connections given up, by why";
        panics: Counter = Counter::default(), "zamba_http_panics", "Requests that ended by a fault of the program";
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    route: Arc<str>,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Place {
    route: Arc<str>,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    reason: Cut,
}

/// Why a connection was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cut {
    /// A head took too long.
    Header,
    /// Messages that could be read in two ways.
    Framing,
    /// The answer was not read.
    Stalled,
    /// TLS was not agreed on.
    Handshake,
    /// Too many connections.
    Crowded,
    /// It outlived the server.
    Drained,
}

impl EncodeLabelValue for Cut {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let name = match self {
            Cut::Header => "header",
            Cut::Framing => "framing",
            Cut::Stalled => "stalled",
            Cut::Handshake => "handshake",
            Cut::Crowded => "crowded",
            Cut::Drained => "drained",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

fn seconds() -> Histogram {
    Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0])
}

impl Traffic {
    /// Counts that [`Metrics::text`] shows too.
    pub(crate) fn new(metrics: &Metrics) -> Arc<Self> {
        let traffic = Traffic::first();
        metrics.with_registry(|registry| traffic.register(registry));
        Arc::new(traffic)
    }

    pub(crate) fn cut(&self, why: Cut) {
        self.cuts.get_or_create(&Reason { reason: why }).inc();
    }

    pub(crate) fn answered(&self, route: &Arc<str>, method: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&Kind { route: route.clone(), method, status }).inc();
        self.durations.get_or_create(&Place { route: route.clone(), method }).observe(took.as_secs_f64());
    }
}
