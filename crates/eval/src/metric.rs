//! Figures of a document and of all of them (`lm_eval/api/metrics.py`).

use fancy_regex::Regex;

use crate::python::Random;
use crate::score::Score;
use crate::task::{Aggregation, Case, Gold, Metric, MetricConfig, OutputType};

/// A figure of one document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    /// 0 or 1 as a whole number, as lm-evaluation-harness writes it for a likelihood.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A likelihood, and the words or bytes that it is for.
    Weighted(f64, u64),
}

impl Value {
    fn number(self) -> f64 {
        match self {
            Value::Flag(flag) => f64::from(u8::from(flag)),
            Value::Number(x) | Value::Weighted(x, _) => x,
        }
    }
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Response {
    Score(Score),
    Rolling(f64),
    Text(String),
}

/// The figures of a case, in the order of `metrics`.
pub(crate) fn of_case(
    output: OutputType,
    metrics: &[PreparedMetric],
    case: &Case,
    responses: &[Response],
) -> Vec<Value> {
    let scores: Vec<Score> = responses.iter().filter_map(Response::score).collect();
    metrics
        .iter()
        .map(|metric| match (output, metric.config.metric) {
            (OutputType::MultipleChoice, which) => Value::Number(chosen(which, case, &scores)),
            (OutputType::Loglikelihood, Metric::Perplexity) => Value::Number(scores[0].loglikelihood),
            (OutputType::Loglikelihood, _) => Value::Flag(scores[0].greedy),
            (OutputType::LoglikelihoodRolling, which) => {
                let ll = if let Response::Rolling(ll) = responses[0] { ll } else { f64::NAN };
                let size = if which == Metric::WordPerplexity { case.size.0 } else { case.size.1 };
                Value::Weighted(ll, size)
            }
            (OutputType::GenerateUntil, _) => {
                let answer = if let Response::Text(text) = &responses[0] { text.as_str() } else { "" };
                Value::Number(f64::from(u8::from(metric.matches(answer, &case.gold))))
            }
        })
        .collect()
}

impl Response {
    fn score(&self) -> Option<Score> {
        if let Response::Score(score) = self { Some(*score) } else { None }
    }
}

/// 1 if the choice that the model finds the likeliest is right.
fn chosen(metric: Metric, case: &Case, scores: &[Score]) -> f64 {
    let Gold::Choices(right) = &case.gold else { return 0.0 };
    if metric == Metric::ExactMatch {
        return f64::from(u8::from(right.iter().any(|i| scores[*i].greedy)));
    }
    let length = |i: usize| match metric {
        Metric::AccNorm => case.choices[i].chars().count() as f64,
        Metric::AccBytes => case.choices[i].len() as f64,
        _ => 1.0,
    };
    let normed: Vec<f64> = scores.iter().enumerate().map(|(i, s)| s.loglikelihood / length(i)).collect();
    f64::from(u8::from(right.contains(&largest(&normed))))
}

/// `numpy.argmax`: the first of the largest, and the first that is no number before all.
fn largest(x: &[f64]) -> usize {
    if let Some(none) = x.iter().position(|x| x.is_nan()) {
        return none;
    }
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

/// A metric with its patterns.
pub(crate) struct PreparedMetric {
    pub(crate) config: MetricConfig,
    ignore: Vec<Regex>,
}

impl PreparedMetric {
    /// # Errors
    /// What is wrong with a pattern.
    pub(crate) fn new(config: MetricConfig) -> Result<Self, String> {
        let patterns = config.regexes_to_ignore.iter().flatten();
        let ignore = patterns.map(|p| Regex::new(p).map_err(|e| format!("regexes_to_ignore: {e}")));
        Ok(PreparedMetric { ignore: ignore.collect::<Result<_, _>>()?, config })
    }

    pub(crate) fn aggregation(&self) -> Aggregation {
        self.config.metric.aggregation()
    }

    pub(crate) fn higher_is_better(&self) -> bool {
        self.config.higher_is_better.unwrap_or(self.config.metric.higher_is_better())
    }

    /// `exact_match`
    fn matches(&self, answer: &str, gold: &Gold) -> bool {
        let Gold::Texts(texts) = gold else { return false };
        let answer = self.plain(answer);
        texts.iter().any(|text| self.plain(text) == answer)
    }

    fn plain(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for pattern in &self.ignore {
            text = pattern.replace_all(&text, "").into_owned();
        }
        if self.config.ignore_case == Some(true) {
            text = text.to_lowercase();
        }
        if self.config.ignore_punctuation == Some(true) {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        if self.config.ignore_numbers == Some(true) {
            text.retain(|c| !c.is_ascii_digit());
        }
        text
    }
}

/// Resamples of the bootstrap, and those that share a seed.
const BOOTSTRAP: (usize, u64) = (100_000, 1000);

/// The figure of all documents, and its standard error where it has one.
pub(crate) fn of_all(aggregation: Aggregation, values: &[Value]) -> (f64, Option<f64>) {
    let numbers: Vec<f64> = values.iter().map(|v| v.number()).collect();
    match aggregation {
        Aggregation::Mean => (mean(&numbers), (numbers.len() > 1).then(|| mean_error(&numbers))),
        Aggregation::Perplexity => {
            let error = (numbers.len() > 1).then(|| bootstrap(&numbers, |x| (-mean(x)).exp()));
            ((-mean(&numbers)).exp(), error)
        }
        Aggregation::WeightedPerplexity => ((-weighted(values)).exp(), None),
        Aggregation::BitsPerByte => (-weighted(values) / std::f64::consts::LN_2, None),
    }
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

fn weighted(values: &[Value]) -> f64 {
    let weight: u64 = values.iter().map(|v| if let Value::Weighted(_, w) = v { *w } else { 1 }).sum();
    values.iter().map(|v| v.number()).sum::<f64>() / weight as f64
}

/// Standard deviation of a sample.
fn deviation(x: &[f64]) -> f64 {
    let mu = mean(x);
    (x.iter().map(|x| (x - mu).powi(2)).sum::<f64>() / (x.len() - 1) as f64).sqrt()
}

fn mean_error(x: &[f64]) -> f64 {
    deviation(x) / (x.len() as f64).sqrt()
}

/// The standard deviation of a figure over resamples, which are those of lm-evaluation-harness.
fn bootstrap(x: &[f64], figure: impl Fn(&[f64]) -> f64) -> f64 {
    let (all, each) = BOOTSTRAP;
    let mut figures = Vec::with_capacity(all);
    let mut sample = vec![0.0; x.len()];
    for seed in 0..all as u64 / each {
        let mut random = Random::new(seed);
        for _ in 0..each {
            sample.iter_mut().for_each(|s| *s = x[random.choice(x.len())]);
            figures.push(figure(&sample));
        }
    }
    deviation(&figures)
}

/// The figure of a group: of its members' figures, errors and numbers of documents.
pub(crate) fn of_group(members: &[(f64, Option<f64>, usize)], by_size: bool) -> (f64, Option<f64>) {
    let weight = |n: usize| if by_size { n as f64 } else { 1.0 };
    let total: f64 = members.iter().map(|m| weight(m.2)).sum();
    let value = members.iter().map(|m| m.0 * weight(m.2)).sum::<f64>() / total;
    let errors: Option<Vec<f64>> = members.iter().map(|m| m.1).collect();
    let error = errors.map(|errors| {
        if !by_size {
            return errors.iter().map(|e| e * e).sum::<f64>().sqrt() / errors.len() as f64;
        }
        let terms = errors.iter().zip(members).map(|(e, m)| (m.2 as f64 - 1.0) * e.powi(2) * m.2 as f64);
        (terms.sum::<f64>() / (total - members.len() as f64) / total).sqrt()
    });
    (value, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_python() {
        // Made with `lm_eval.api.metrics` 0.4.13.
        let flags: Vec<Value> = [1, 0, 0, 1, 1].iter().map(|x| Value::Number(f64::from(*x))).collect();
        assert_eq!(of_all(Aggregation::Mean, &flags), (0.6, Some(0.244_948_974_278_317_83)));
        let lls: Vec<Value> = [-1.0, -2.5, -0.25].map(Value::Number).to_vec();
        assert_eq!(of_all(Aggregation::Perplexity, &lls), (3.4903429574618414, Some(2.3934410612066515)));
        let (value, error) = of_group(&[(0.5, Some(0.1), 10), (0.25, Some(0.2), 30)], true);
        assert_eq!((value, error), (0.3125, Some(0.15325417483795722)));
        let (value, error) = of_group(&[(0.5, Some(0.1), 10), (0.25, Some(0.2), 30)], false);
        assert_eq!((value, error), (0.375, Some(0.1118033988749895)));
        let sums = [Value::Weighted(-10.0, 4), Value::Weighted(-1.0, 1)];
        assert_eq!(of_all(Aggregation::WeightedPerplexity, &sums).0, 9.025013499434122);
        assert_eq!(of_all(Aggregation::BitsPerByte, &sums).0, 3.17392908995572);
    }
}
