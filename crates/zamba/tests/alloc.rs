//! After the first tokens, decoding asks the heap for nothing per operation.

mod common;

use std::sync::Arc;

use common::{lively, small_config, tokens};
use zamba::Session;
use zamba::config::{LayerKind, ZambaConfig};
use zamba_kernels::Dtype;
use zamba_kernels::cpu::Cpu;

#[global_allocator]
static ALLOC: dhat::Alloc = dhat::Alloc;

/// Heap blocks asked for by one decode step of a warm session.
fn blocks_per_step(config: &ZambaConfig) -> u64 {
    let model = lively(config, Arc::new(Cpu::new(Some(2))), Dtype::Bf16, 1);
    let mut session = Session::new(&model, 64);
    session.feed(&tokens(10, 61, 1));
    session.feed(&[5]);
    let before = dhat::HeapStats::get().total_blocks;
    session.feed(&[6]);
    dhat::HeapStats::get().total_blocks - before
}

#[test]
fn decode_allocates_nothing_per_operation() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let shallow = small_config();
    let mut deep = small_config();
    deep.layers_block_type.extend([LayerKind::Mamba, LayerKind::Hybrid, LayerKind::Mamba, LayerKind::Hybrid]);
    deep.num_hidden_layers = deep.layers_block_type.len();
    let (shallow, deep) = (blocks_per_step(&shallow), blocks_per_step(&deep));
    assert_eq!(shallow, deep, "a deeper model must not allocate more");
    // The batch, its two lists and the list of last rows.
    assert!(shallow <= 6, "{shallow} blocks");
}
