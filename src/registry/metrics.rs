// SPDX-License-Identifier: MPL-2.0
//! What the registry counts, as OpenMetrics text, which Prometheus reads: in a build with the feature `prometheus`.
//!
//! An application that has an endpoint of its own registers a [`Collector`] there; one that has not writes
//! [`Registry::prometheus_text`] to whoever asks. All numbers are read when asked for: nothing is counted twice.

use std::fmt;

use prometheus_client::collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry as Metrics;

use super::ledger::DeviceMemory;
use super::{ModelStats, Registry};

type Labels = Vec<(&'static str, String)>;

/// Gives the figures of a registry to Prometheus.
#[derive(Debug)]
pub struct Collector(Registry);

impl Collector {
    /// For `registry`, often [`Registry::global`].
    pub fn new(registry: &Registry) -> Self {
        Self(registry.clone())
    }
}

impl Registry {
    /// What it counts, as text in the OpenMetrics format, `# EOF` at its end. Its media type is
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn prometheus_text(&self) -> String {
        let mut metrics = Metrics::default();
        metrics.register_collector(Box::new(Collector::new(self)));
        let mut out = String::new();
        // Writing into a string never fails.
        let _ = text::encode(&mut out, &metrics);
        out
    }
}

impl collector::Collector for Collector {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = To(encoder);
        let (devices, models) = (self.0.memory(), self.0.stats());
        to.gauge(
            "scribe_device_memory_bytes",
            "Memory of a device: all of it, what scribe may use, where admission ends, what is booked, what this process \
             has reserved, the most it ever had, what others hold, what the device says that this process holds.",
            devices.iter().flat_map(device_memory),
        )?;
        to.gauge(
            "scribe_model_loaded",
            "1 for a model whose weights are in memory.",
            of_models(&models, |m| u64::from(m.loaded)),
        )?;
        to.gauge(
            "scribe_model_leases",
            "Elements and programs that hold a model.",
            of_models(&models, |m| m.leases as u64),
        )?;
        to.gauge(
            "scribe_model_memory_bytes",
            "Memory reserved for a model, by part.",
            models.iter().flat_map(model_memory),
        )?;
        to.gauge(
            "scribe_model_lanes",
            "Threads that run a model, by what they do.",
            models.iter().flat_map(model_lanes),
        )?;
        to.gauge(
            "scribe_model_queued",
            "Jobs that wait for a lane.",
            of_models(&models, |m| m.queued as u64),
        )?;
        to.gauge(
            "scribe_model_batch_items",
            "Items of the next batch, at most.",
            of_models(&models, |m| m.batch as u64),
        )?;
        to.gauge(
            "scribe_model_load_seconds",
            "Time that the load took.",
            of_models(&models, |m| m.load_seconds),
        )?;
        to.counter(
            "scribe_model_jobs",
            "Jobs done.",
            of_models(&models, |m| m.jobs),
        )?;
        to.counter(
            "scribe_model_jobs_failed",
            "Jobs that failed.",
            of_models(&models, |m| m.failed),
        )?;
        to.counter(
            "scribe_model_batches",
            "Batches run.",
            of_models(&models, |m| m.batches),
        )?;
        to.counter(
            "scribe_model_out_of_memory",
            "Batches that found no memory, and were done again smaller or elsewhere.",
            of_models(&models, |m| m.out_of_memory),
        )?;
        to.counter(
            "scribe_model_audio_seconds",
            "Seconds of sound done.",
            of_models(&models, |m| m.audio_seconds),
        )?;
        to.counter(
            "scribe_model_busy_seconds",
            "Seconds that lanes have computed.",
            of_models(&models, |m| m.busy_seconds),
        )?;
        to.gauge(
            "scribe_requests_waiting",
            "Requests that stand in line for memory.",
            [(Labels::new(), self.0.waiting() as u64)].into_iter(),
        )?;
        to.counter(
            "scribe_models_evicted",
            "Models that were unloaded.",
            [(Labels::new(), self.0.evicted())].into_iter(),
        )
    }
}

struct To<'a>(DescriptorEncoder<'a>);

impl To<'_> {
    fn gauge<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counter<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }
}

fn device_memory(memory: &DeviceMemory) -> Vec<(Labels, u64)> {
    let labels = |what: &str| {
        vec![
            ("device", memory.device.to_string()),
            ("what", what.to_owned()),
        ]
    };
    vec![
        (labels("total"), memory.total),
        (labels("capacity"), memory.capacity),
        (labels("ceiling"), memory.ceiling),
        (labels("booked"), memory.booked),
        (labels("reserved"), memory.reserved),
        (labels("peak"), memory.peak),
        (labels("foreign"), memory.foreign),
        (labels("measured"), memory.measured),
    ]
}

fn labels_of(model: &ModelStats) -> Labels {
    vec![
        ("kind", model.kind.to_owned()),
        ("model", model.name.clone()),
        ("device", model.device.to_string()),
    ]
}

fn of_models<V>(
    models: &[ModelStats],
    value: impl Fn(&ModelStats) -> V,
) -> impl Iterator<Item = (Labels, V)> {
    models.iter().map(move |m| (labels_of(m), value(m)))
}

fn part(model: &ModelStats, key: &'static str, name: &str, value: u64) -> (Labels, u64) {
    let mut labels = labels_of(model);
    labels.push((key, name.to_owned()));
    (labels, value)
}

fn model_memory(model: &ModelStats) -> [(Labels, u64); 2] {
    [
        part(model, "part", "weights", model.weights_bytes),
        part(model, "part", "lanes", model.lanes_bytes),
    ]
}

fn model_lanes(model: &ModelStats) -> [(Labels, u64); 2] {
    let idle = model.lanes.saturating_sub(model.busy_lanes);
    [
        part(model, "state", "busy", model.busy_lanes as u64),
        part(model, "state", "idle", idle as u64),
    ]
}

#[cfg(all(test, not(feature = "model-check")))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inference::CancelToken;
    use crate::inference::fake::FakeBatches;
    use crate::registry::{Embedding, EmbeddingSpec, Request};

    #[test]
    fn every_line_is_a_comment_or_a_name_with_a_value() {
        FakeBatches::default().register("a \"quoted\" name");
        let registry = Registry::new(1, Duration::from_secs(60));
        let spec = EmbeddingSpec::Fake("a \"quoted\" name".into());
        let _held = registry
            .acquire(Request::<Embedding>(spec), &CancelToken::new())
            .expect("a fake loads");

        let text = registry.prometheus_text();

        assert!(text.ends_with("# EOF\n"), "{text}");
        let line = "scribe_model_leases{kind=\"voice embedding\",model=\"a \\\"quoted\\\" name\",device=\"cpu\"} 1";
        assert!(text.lines().any(|l| l == line), "{text}");
        assert!(text.contains("scribe_device_memory_bytes{device=\"cpu\",what=\"ceiling\"} "));
        assert!(text.contains("scribe_models_evicted_total 0"), "{text}");
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let value = line.rsplit(' ').next().unwrap_or_default();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
