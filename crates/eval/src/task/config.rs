//! What a task or group file may say. The words are those of lm-evaluation-harness; a word that is not honoured
//! here is refused by name.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A text by template, column or function, or a fixed value.
///
/// Functions arrive as `{"!function": "module.name"}`, see [`Library`](super::Library).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Source {
    Function(Function),
    /// The name of a column, or a template.
    Text(String),
    Fixed(Value),
}

/// A function of this program, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Function {
    #[serde(rename = "!function")]
    pub(crate) name: String,
}

/// A string or several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Strings {
    One(String),
    Many(Vec<String>),
    #[default]
    None,
}

impl Strings {
    pub(crate) fn as_slice(&self) -> &[String] {
        match self {
            Strings::One(one) => std::slice::from_ref(one),
            Strings::Many(many) => many,
            Strings::None => &[],
        }
    }
}

/// How a task's requests are made and scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputType {
    MultipleChoice,
    Loglikelihood,
    LoglikelihoodRolling,
    GenerateUntil,
}

/// A task.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskConfig {
    pub(crate) task: String,
    pub(crate) task_alias: Option<String>,
    #[serde(default)]
    pub(crate) tag: Strings,
    pub(crate) dataset_path: String,
    pub(crate) dataset_name: Option<String>,
    pub(crate) dataset_kwargs: Option<DatasetKwargs>,
    pub(crate) training_split: Option<String>,
    pub(crate) validation_split: Option<String>,
    pub(crate) test_split: Option<String>,
    pub(crate) fewshot_split: Option<String>,
    pub(crate) process_docs: Option<Function>,
    pub(crate) doc_to_text: Source,
    pub(crate) doc_to_target: Source,
    pub(crate) doc_to_choice: Option<Source>,
    pub(crate) process_results: Option<Function>,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default = "space")]
    pub(crate) target_delimiter: String,
    #[serde(default = "paragraph")]
    pub(crate) fewshot_delimiter: String,
    #[serde(default)]
    pub(crate) fewshot_config: FewshotConfig,
    pub(crate) num_fewshot: Option<usize>,
    pub(crate) metric_list: Option<Vec<MetricConfig>>,
    #[serde(default = "generate")]
    pub(crate) output_type: OutputType,
    pub(crate) generation_kwargs: Option<GenerationConfig>,
    pub(crate) repeats: Option<usize>,
    pub(crate) filter_list: Option<Vec<FilterList>>,
    /// Has no effect here or there.
    pub(crate) should_decontaminate: Option<bool>,
    /// Has no effect here or there.
    pub(crate) doc_to_decontamination_query: Option<String>,
    pub(crate) metadata: Option<Map<String, Value>>,
}

fn space() -> String {
    " ".to_owned()
}

fn paragraph() -> String {
    "\n\n".to_owned()
}

fn generate() -> OutputType {
    OutputType::GenerateUntil
}

/// Where to find the data besides the dataset's name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatasetKwargs {
    /// A file or files for each split.
    pub(crate) data_files: Option<std::collections::BTreeMap<String, Strings>>,
    /// Code from a data set is never run.
    pub(crate) trust_remote_code: Option<bool>,
}

/// Where shots come from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FewshotConfig {
    #[serde(default)]
    pub(crate) sampler: Sampler,
    pub(crate) split: Option<String>,
    pub(crate) samples: Option<Vec<Map<String, Value>>>,
    pub(crate) doc_to_text: Option<Source>,
    pub(crate) doc_to_target: Option<Source>,
    pub(crate) doc_to_choice: Option<Source>,
    pub(crate) target_delimiter: Option<String>,
    pub(crate) fewshot_delimiter: Option<String>,
}

/// How shots are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sampler {
    #[default]
    Default,
    FirstN,
}

/// A figure to compute.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetricConfig {
    pub(crate) metric: Metric,
    pub(crate) aggregation: Option<Aggregation>,
    pub(crate) higher_is_better: Option<bool>,
    pub(crate) ignore_case: Option<bool>,
    pub(crate) ignore_punctuation: Option<bool>,
    pub(crate) ignore_numbers: Option<bool>,
    pub(crate) regexes_to_ignore: Option<Vec<String>>,
}

/// The figures that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Acc,
    AccNorm,
    AccBytes,
    ExactMatch,
    Perplexity,
    WordPerplexity,
    BytePerplexity,
    BitsPerByte,
}

/// How a figure of all documents is made of those of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aggregation {
    Mean,
    Perplexity,
    WeightedPerplexity,
    BitsPerByte,
}

/// How text is generated. There is no random choice.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GenerationConfig {
    #[serde(default)]
    pub(crate) until: Strings,
    pub(crate) do_sample: Option<bool>,
    pub(crate) temperature: Option<f64>,
    #[serde(alias = "max_new_tokens", alias = "max_tokens", alias = "max_completion_tokens")]
    pub(crate) max_gen_toks: Option<usize>,
}

/// Steps from a response to an answer, under a name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilterList {
    pub(crate) name: String,
    pub(crate) filter: Vec<FilterConfig>,
}

/// One step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "function", rename_all = "snake_case")]
pub(crate) enum FilterConfig {
    Regex {
        #[serde(default = "gsm8k_pattern")]
        regex_pattern: String,
        #[serde(default)]
        group_select: i64,
        #[serde(default = "invalid")]
        fallback: String,
    },
    TakeFirst,
    Lowercase,
    Uppercase,
    RemoveWhitespace,
}

fn gsm8k_pattern() -> String {
    "#### (\\-?[0-9\\.\\,]+)".to_owned()
}

fn invalid() -> String {
    "[invalid]".to_owned()
}

/// Several tasks under one name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupConfig {
    pub(crate) group: String,
    pub(crate) group_alias: Option<String>,
    #[serde(default)]
    pub(crate) task: Strings,
    pub(crate) tag: Option<Strings>,
    #[serde(default)]
    pub(crate) aggregate_metric_list: Vec<AggregateConfig>,
    pub(crate) metadata: Option<Map<String, Value>>,
}

/// A figure of a group.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AggregateConfig {
    pub(crate) metric: String,
    pub(crate) filter_list: Option<Strings>,
    pub(crate) aggregation: Option<MeanOnly>,
    #[serde(default = "yes")]
    pub(crate) weight_by_size: bool,
}

fn yes() -> bool {
    true
}

/// The one way to combine tasks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MeanOnly {
    Mean,
}

impl Metric {
    /// As files and results spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Metric::Acc => "acc",
            Metric::AccNorm => "acc_norm",
            Metric::AccBytes => "acc_bytes",
            Metric::ExactMatch => "exact_match",
            Metric::Perplexity => "perplexity",
            Metric::WordPerplexity => "word_perplexity",
            Metric::BytePerplexity => "byte_perplexity",
            Metric::BitsPerByte => "bits_per_byte",
        }
    }

    /// How it is combined unless the file says otherwise.
    pub(crate) fn aggregation(self) -> Aggregation {
        match self {
            Metric::Acc | Metric::AccNorm | Metric::AccBytes | Metric::ExactMatch => Aggregation::Mean,
            Metric::Perplexity => Aggregation::Perplexity,
            Metric::WordPerplexity | Metric::BytePerplexity => Aggregation::WeightedPerplexity,
            Metric::BitsPerByte => Aggregation::BitsPerByte,
        }
    }

    /// Whether more is better, unless the file says otherwise.
    pub(crate) fn higher_is_better(self) -> bool {
        self.aggregation() == Aggregation::Mean
    }

    /// Whether tasks of this kind have the figure.
    pub(crate) fn fits(self, output: OutputType) -> bool {
        match self {
            Metric::Acc => matches!(output, OutputType::MultipleChoice | OutputType::Loglikelihood),
            Metric::AccNorm | Metric::AccBytes => output == OutputType::MultipleChoice,
            Metric::ExactMatch => matches!(output, OutputType::MultipleChoice | OutputType::GenerateUntil),
            Metric::Perplexity => output == OutputType::Loglikelihood,
            _ => output == OutputType::LoglikelihoodRolling,
        }
    }

    /// What a task of this kind has unless its file lists figures.
    pub(crate) fn defaults(output: OutputType) -> Vec<Metric> {
        match output {
            OutputType::MultipleChoice => vec![Metric::Acc, Metric::AccNorm],
            OutputType::Loglikelihood => vec![Metric::Perplexity, Metric::Acc],
            OutputType::LoglikelihoodRolling => {
                vec![Metric::WordPerplexity, Metric::BytePerplexity, Metric::BitsPerByte]
            }
            OutputType::GenerateUntil => vec![Metric::ExactMatch],
        }
    }
}
