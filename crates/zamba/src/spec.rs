//! The list of a model's tensors, derived from its configuration alone.
//!
//! Loading, saving, counting, clipping, stepping and exporting all walk this one list in this one
//! order. Names and shapes are those of the current `transformers` checkpoints (`modeling_zamba.py`).

use zamba_kernels::quant;

use crate::config::{LayerKind, QuantFormat, ZambaConfig};

/// What a tensor is for, which decides how it is initialised, stored in memory and decayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorKind {
    /// Token embedding `[v, d]`.
    Embedding,
    /// A matrix `[o, i]`.
    Linear,
    /// Weight of an RMS norm.
    Norm,
    /// Taps of the causal convolution `[e, 1, k]`; tap `k - 1` multiplies the current token.
    Conv,
    /// Bias of the causal convolution `[e]`.
    ConvBias,
    /// Bias of a Mamba in or out projection.
    ProjBias,
    /// Per-head projection to low-rank dt, B and C, `[h, r + 2n, p]`.
    XProj,
    /// Per-head projection from low-rank dt to channels, `[h, p, r]`.
    DtProj,
    /// Bias of dt before the softplus, `[h, p]`.
    DtBias,
    /// Logarithm of minus A, `[h, p, n]`.
    ALog,
    /// Skip weight, `[h, p]`.
    D,
    /// Output head `[v, d]` where it is not the embedding.
    Head,
}

/// A tensor of a model: its name in a checkpoint, its shape there, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Shape in the file, outermost first.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: TensorKind,
}

impl TensorSpec {
    /// Count of numbers.
    #[expect(clippy::len_without_is_empty, reason = "no tensor of a checked configuration is empty")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The tensor as a matrix: all leading dimensions merged into rows. A vector is one row.
    pub fn rows_cols(&self) -> (usize, usize) {
        match self.shape.split_last() {
            Some((cols, rows)) => (rows.iter().product(), *cols),
            None => (1, 1),
        }
    }

    /// How the tensor is quantised in a model of `config`, if it is: the matrices `[o, i]` of linear maps
    /// are, where they fall into whole blocks. Embedding and head touch every logit, and the projections of
    /// B, C and dt enter exponentials and a recurrence; they are a few percent of the weights and stay as
    /// they are.
    pub fn quantised(&self, config: &ZambaConfig) -> Option<QuantFormat> {
        let (rows, cols) = self.rows_cols();
        config.quantization.filter(|_| self.kind == TensorKind::Linear && quant::fits(rows, cols))
    }

    /// Whether weight decay applies.
    ///
    /// Matrices and the convolution decay; norms, biases, A_log, D and the dt bias never do. That is
    /// what `mamba_ssm` marks with `_no_weight_decay` together with the custom of sparing norms and
    /// biases; its convolution weights carry no mark and decay.
    pub fn decays(&self) -> bool {
        use TensorKind::*;
        match self.kind {
            Embedding | Linear | Conv | XProj | DtProj | Head => true,
            Norm | ConvBias | ProjBias | DtBias | ALog | D => false,
        }
    }

    /// Whether the tensor is a list of numbers per channel and not a matrix that tokens multiply:
    /// norms, biases, D.
    pub fn is_vector(&self) -> bool {
        use TensorKind::*;
        matches!(self.kind, Norm | ConvBias | ProjBias | DtBias | D)
    }

    /// Whether the tensor is held in f32 in memory however the matrices are stored. These enter
    /// exponentials, recurrences and norms, are small, and gain nothing from fewer bits.
    pub fn keeps_f32(&self) -> bool {
        use TensorKind::*;
        match self.kind {
            Norm | Conv | ConvBias | ProjBias | DtBias | ALog | D => true,
            Embedding | Linear | XProj | DtProj | Head => false,
        }
    }
}

/// Every tensor of a model, in the order that everything walks: the embedding; the layers in order;
/// the final norm; the head if it is not tied.
///
/// The shared block stands once, before the rest of the first hybrid layer, under whose name files
/// store it. A stack without hybrid layers has none.
///
/// # Panics
/// Only for a configuration that [`ZambaConfig::check`] refuses.
pub fn tensors(config: &ZambaConfig) -> Vec<TensorSpec> {
    let mut list = List(Vec::new());
    let (v, d) = (config.vocab_size, config.hidden_size);
    list.add("model.embed_tokens.weight".into(), &[v, d], TensorKind::Embedding);
    let home = config.shared_block_layer();
    for (i, kind) in config.layers_block_type.iter().enumerate() {
        let layer = format!("model.layers.{i}");
        match kind {
            LayerKind::Mamba => list.mamba_layer(config, &layer),
            LayerKind::Hybrid => {
                if home == Some(i) {
                    list.shared_block(config, &format!("{layer}.shared_transf"));
                }
                list.add(format!("{layer}.linear.weight"), &[d, d], TensorKind::Linear);
                list.mamba_layer(config, &format!("{layer}.mamba_decoder"));
            }
        }
    }
    list.add("model.final_layernorm.weight".into(), &[d], TensorKind::Norm);
    if !config.tie_word_embeddings {
        list.add("lm_head.weight".into(), &[v, d], TensorKind::Head);
    }
    list.0
}

struct List(Vec<TensorSpec>);

impl List {
    fn add(&mut self, name: String, shape: &[usize], kind: TensorKind) {
        self.0.push(TensorSpec { name, shape: shape.to_vec(), kind });
    }

    /// `ZambaAttentionDecoderLayer`, in the order of its forward pass.
    fn shared_block(&mut self, c: &ZambaConfig, at: &str) {
        let (d, dd, f) = (c.hidden_size, c.attention_hidden_size, c.intermediate_size);
        let (q, kv) = (c.q_width(), c.kv_width());
        self.add(format!("{at}.input_layernorm.weight"), &[dd], TensorKind::Norm);
        self.add(format!("{at}.self_attn.q_proj.weight"), &[q, dd], TensorKind::Linear);
        self.add(format!("{at}.self_attn.k_proj.weight"), &[kv, dd], TensorKind::Linear);
        self.add(format!("{at}.self_attn.v_proj.weight"), &[kv, dd], TensorKind::Linear);
        self.add(format!("{at}.self_attn.o_proj.weight"), &[d, q], TensorKind::Linear);
        self.add(format!("{at}.pre_ff_layernorm.weight"), &[d], TensorKind::Norm);
        self.add(format!("{at}.feed_forward.gate_proj.weight"), &[f, d], TensorKind::Linear);
        self.add(format!("{at}.feed_forward.up_proj.weight"), &[f, d], TensorKind::Linear);
        self.add(format!("{at}.feed_forward.down_proj.weight"), &[d, f], TensorKind::Linear);
    }

    /// `ZambaMambaDecoderLayer`, in the order of its forward pass.
    fn mamba_layer(&mut self, c: &ZambaConfig, at: &str) {
        let (d, e, h, p) = (c.hidden_size, c.d_inner(), c.n_mamba_heads, c.mamba_head_dim());
        let (r, n, k) = (c.mamba_dt_rank, c.mamba_d_state, c.mamba_d_conv);
        self.add(format!("{at}.input_layernorm.weight"), &[d], TensorKind::Norm);
        self.add(format!("{at}.mamba.in_proj.weight"), &[2 * e, d], TensorKind::Linear);
        if c.mamba_proj_bias {
            self.add(format!("{at}.mamba.in_proj.bias"), &[2 * e], TensorKind::ProjBias);
        }
        self.add(format!("{at}.mamba.conv1d.weight"), &[e, 1, k], TensorKind::Conv);
        if c.mamba_conv_bias {
            self.add(format!("{at}.mamba.conv1d.bias"), &[e], TensorKind::ConvBias);
        }
        self.add(format!("{at}.mamba.x_proj_weight"), &[h, c.x_proj_rows(), p], TensorKind::XProj);
        self.add(format!("{at}.mamba.dt_proj_weight"), &[h, p, r], TensorKind::DtProj);
        self.add(format!("{at}.mamba.dt_proj_bias"), &[h, p], TensorKind::DtBias);
        self.add(format!("{at}.mamba.A_log"), &[h, p, n], TensorKind::ALog);
        self.add(format!("{at}.mamba.D"), &[h, p], TensorKind::D);
        self.add(format!("{at}.mamba.out_proj.weight"), &[d, e], TensorKind::Linear);
        if c.mamba_proj_bias {
            self.add(format!("{at}.mamba.out_proj.bias"), &[d], TensorKind::ProjBias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts published for or derived from the released 7B checkpoint.
    #[test]
    fn seven_b_has_the_published_tensors() {
        let config = ZambaConfig::preset("zamba-7b").unwrap();
        let list = tensors(&config);
        assert_eq!(list.len(), 784);
        assert_eq!(config.parameters(), 7_232_490_496);
        assert_eq!(config.hybrid_layers(), [2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73]);
        let find = |name: &str| list.iter().find(|spec| spec.name == name).map(|spec| spec.shape.clone());
        let shared = "model.layers.2.shared_transf";
        assert_eq!(find("model.layers.0.mamba.x_proj_weight"), Some(vec![2, 264, 3712]));
        assert_eq!(find("model.layers.7.mamba_decoder.mamba.conv1d.weight"), Some(vec![7424, 1, 4]));
        assert_eq!(find(&format!("{shared}.self_attn.o_proj.weight")), Some(vec![3712, 7424]));
        assert_eq!(find("model.layers.7.shared_transf.input_layernorm.weight"), None);
        assert_eq!(find("lm_head.weight"), None);
    }

    #[test]
    fn shared_block_follows_the_first_hybrid_layer() {
        let mut config = ZambaConfig::preset("tiny").unwrap();
        config.layers_block_type = vec![LayerKind::Mamba; 8];
        assert!(tensors(&config).iter().all(|spec| !spec.name.contains("shared_transf")));
        config.layers_block_type[5] = LayerKind::Hybrid;
        config.layers_block_type[6] = LayerKind::Hybrid;
        let names: Vec<_> = tensors(&config).into_iter().map(|spec| spec.name).collect();
        assert_eq!(names.iter().filter(|name| name.contains("shared_transf")).count(), 9);
        assert!(names.iter().all(|name| !name.contains("layers.6.shared_transf")));
        assert!(names.contains(&"model.layers.6.linear.weight".to_owned()));
    }

    #[test]
    fn options_add_their_tensors() {
        let mut config = ZambaConfig::preset("tiny").unwrap();
        let plain = tensors(&config).len();
        config.tie_word_embeddings = false;
        config.mamba_proj_bias = true;
        assert_eq!(tensors(&config).len(), plain + 1 + 2 * 8);
        config.mamba_conv_bias = false;
        assert_eq!(tensors(&config).len(), plain + 1 + 8);
    }

    #[test]
    fn matrix_view_merges_leading_dimensions() {
        let spec = TensorSpec { name: "x".into(), shape: vec![2, 3, 5], kind: TensorKind::XProj };
        assert_eq!((spec.rows_cols(), spec.len()), ((6, 5), 30));
        let spec = TensorSpec { name: "x".into(), shape: vec![7], kind: TensorKind::Norm };
        assert_eq!((spec.rows_cols(), spec.len()), ((1, 7), 7));
    }
}
