//! Kernels that move elements, and those that treat every element alike.

use half::bf16;

use super::math::{activate, for_act, slope};
use super::split::{Columns, Runs, Tile, Tiles};
use super::tier::{LANES, Op, Tier, V, Weight};
use super::{Cpu, GRAIN, goes_past};
use crate::{Act, Buf, CacheRows, Dtype, Mat};

/// Columns per chunk of a sum into rows that are named by the data.
const COLUMN_BLOCK: usize = 64;

/// Copies with conversion. The tier only decides how wide the moves are.
struct Convert<'a, Y, X>(&'a mut [Y], &'a [X]);

/// A conversion between element types.
trait Into32: Copy + Send + Sync {
    fn get(self) -> f32;
}
pub(super) trait From32: Copy + Send {
    fn put(x: f32) -> Self;
}
impl Into32 for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
}
impl Into32 for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        self.wide()
    }
}
impl From32 for f32 {
    #[inline(always)]
    fn put(x: f32) -> f32 {
        x
    }
}
impl From32 for bf16 {
    /// To the nearest, ties to even; NaN becomes a quiet NaN.
    #[inline(always)]
    fn put(x: f32) -> bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
    }
}

impl<Y: From32, X: Into32> Op for Convert<'_, Y, X> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        for (y, x) in self.0.iter_mut().zip(self.1) {
            *y = Y::put(x.get());
        }
    }
}

fn convert<Y: From32, X: Into32>(cpu: &Cpu, y: &mut [Y], x: &[X]) {
    assert_eq!(y.len(), x.len());
    cpu.split(x.len(), Runs::new(y, GRAIN), |index, y: &mut [Y]| {
        let x = &x[index * GRAIN..][..y.len()];
        cpu.isa.run(Convert(y, x));
    });
}

/// See [`crate::Device::upload`].
pub(super) fn upload(cpu: &Cpu, y: &mut Buf, at: usize, x: &[f32]) {
    match y.dtype() {
        Dtype::F32 => y.f32_mut()[at..][..x.len()].copy_from_slice(x),
        Dtype::Bf16 => convert(cpu, &mut y.bf16_mut()[at..][..x.len()], x),
        Dtype::Q8 | Dtype::Q4 => panic!("{y:?} takes bytes"),
    }
}

/// See [`crate::Device::download`].
pub(super) fn download(cpu: &Cpu, y: &mut [f32], x: &Buf, at: usize) {
    match x.dtype() {
        Dtype::F32 => y.copy_from_slice(&x.f32()[at..][..y.len()]),
        Dtype::Bf16 => {
            let x = &x.bf16()[at..][..y.len()];
            convert(cpu, y, x);
        }
        Dtype::Q8 | Dtype::Q4 => panic!("{x:?} gives bytes"),
    }
}

/// See [`crate::Device::copy`].
pub(super) fn copy(cpu: &Cpu, y: &mut Buf, y_at: usize, x: &Buf, x_at: usize, len: usize) {
    match (y.dtype(), x.dtype()) {
        (Dtype::F32, Dtype::F32) => same(cpu, &mut y.f32_mut()[y_at..][..len], &x.f32()[x_at..][..len]),
        (Dtype::F32, Dtype::Bf16) => convert(cpu, &mut y.f32_mut()[y_at..][..len], &x.bf16()[x_at..][..len]),
        (Dtype::Bf16, Dtype::F32) => convert(cpu, &mut y.bf16_mut()[y_at..][..len], &x.f32()[x_at..][..len]),
        (Dtype::Bf16, Dtype::Bf16) => same(cpu, &mut y.bf16_mut()[y_at..][..len], &x.bf16()[x_at..][..len]),
        _ => panic!("groups of {x:?} cannot be copied to {y:?}"),
    }
}

/// See [`crate::Device::copy_within`].
pub(super) fn copy_within(cpu: &Cpu, y: &mut Buf, to: usize, from: usize, len: usize) {
    let size = y.dtype().size();
    let (to, from, len) = (to * size, from * size, len * size);
    let y = y.bytes_mut();
    assert!(to.abs_diff(from) >= len, "parts that overlap");
    let (low, high) = y.split_at_mut(to.max(from));
    let (y, x) = if to < from { (&mut low[to..], &*high) } else { (high, &low[from..]) };
    same(cpu, &mut y[..len], &x[..len]);
}

/// `y = x`, by all threads.
fn same<T: bytemuck::NoUninit + bytemuck::AnyBitPattern + Send + Sync>(cpu: &Cpu, y: &mut [T], x: &[T]) {
    let grain = GRAIN * size_of::<f32>() / size_of::<T>();
    let past = goes_past(y);
    cpu.split(size_of_val(x) / size_of::<f32>(), Runs::new(y, grain), |index, y: &mut [T]| {
        let x = &x[index * grain..][..y.len()];
        match (bytemuck::try_cast_slice_mut(y), bytemuck::try_cast_slice(x)) {
            (Ok(y), Ok(x)) => cpu.isa.run(Same { y, x, past }),
            // Not whole numbers of 4 bytes.
            _ => y.copy_from_slice(x),
        }
    });
}

/// `y = x`
struct Same<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    past: bool,
}

impl Op for Same<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        if !self.past {
            return self.y.copy_from_slice(self.x);
        }
        for (y, x) in self.y.chunks_mut(LANES).zip(self.x.chunks(LANES)) {
            V::<S>::load_part(x).put(y, true);
        }
    }
}

/// See [`crate::Device::fill`].
pub(super) fn fill(cpu: &Cpu, y: &mut Buf, value: f32) {
    match y.dtype() {
        Dtype::F32 => {
            let y = y.f32_mut();
            let past = goes_past(y);
            cpu.split(y.len(), Runs::new(y, GRAIN), |_, y: &mut [f32]| cpu.isa.run(Fill { y, value, past }));
        }
        Dtype::Bf16 => y.bf16_mut().fill(bf16::put(value)),
        Dtype::Q8 | Dtype::Q4 => panic!("{y:?} takes bytes"),
    }
}

/// `y = value`
struct Fill<'a> {
    y: &'a mut [f32],
    value: f32,
    past: bool,
}

impl Op for Fill<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        for y in self.y.chunks_mut(LANES) {
            V::<S>::splat(self.value).put(y, self.past);
        }
    }
}

/// `y = a + b`, or `y += a` without `b`.
struct Add<'a> {
    y: &'a mut [f32],
    a: &'a [f32],
    b: Option<&'a [f32]>,
    past: bool,
}

impl Op for Add<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(self) {
        match self.b {
            Some(b) => {
                let inputs = self.a.chunks(LANES).zip(b.chunks(LANES));
                for (y, (a, b)) in self.y.chunks_mut(LANES).zip(inputs) {
                    (V::<S>::load_part(a) + V::load_part(b)).put(y, self.past);
                }
            }
            None => {
                for (y, a) in self.y.iter_mut().zip(self.a) {
                    *y += a;
                }
            }
        }
    }
}

/// `y += x` for one row.
pub(super) fn add_row(cpu: &Cpu, y: &mut [f32], x: &[f32]) {
    cpu.isa.run(Add { y, a: x, b: None, past: false });
}

/// See [`crate::Device::add`] and [`crate::Device::accumulate`].
pub(super) fn add(cpu: &Cpu, y: &mut Buf, a: &Buf, b: Option<&Buf>) {
    assert!(y.len() == a.len() && b.is_none_or(|b| b.len() == a.len()), "arrays of a sum");
    let (y, a, b) = (y.f32_mut(), a.f32(), b.map(Buf::f32));
    let past = goes_past(y);
    cpu.split(a.len(), Runs::new(y, GRAIN), |index, y: &mut [f32]| {
        let part = index * GRAIN..index * GRAIN + y.len();
        cpu.isa.run(Add { y, a: &a[part.clone()], b: b.map(|b| &b[part]), past });
    });
}

/// See [`crate::Device::gather_rows`].
pub(super) fn gather_rows(cpu: &Cpu, y: &mut Buf, x: &Buf, rows: &[u32], d: usize) {
    assert_eq!(y.len(), rows.len() * d, "gathered rows");
    let x = x.f32();
    cpu.rows(y.f32_mut(), d, |j, y| y.copy_from_slice(&x[rows[j] as usize * d..][..d]));
}

/// Adds row `j` of `dy` to row `rows[j]` of `dx`, in order of `j`; see [`crate::Device::scatter_rows`].
///
/// Chunks own columns, because the same row may be named twice.
pub(super) fn scatter_rows(cpu: &Cpu, dx: &mut [f32], dy: &Buf, rows: &[u32], d: usize) {
    assert_eq!(dy.len(), rows.len() * d, "rows to scatter");
    let dy = dy.f32();
    // Short runs of columns waste the rest of each cache line's neighbours: take all for little work.
    let width = if dy.len() <= GRAIN { d.max(1) } else { COLUMN_BLOCK };
    cpu.split(dy.len(), Tiles::columns(dx, d, Columns::all(d, width)), |_, mut dx: Tile<f32>| {
        for (j, row) in rows.iter().enumerate() {
            let dy = &dy[j * d + dx.start..][..dx.width];
            add_row(cpu, dx.row_mut(*row as usize), dy);
        }
    });
}

/// See [`crate::Device::embed`].
pub(super) fn embed(cpu: &Cpu, y: &mut Buf, tokens: &[u32], w: &Mat) {
    let d = w.cols();
    assert_eq!(y.len(), tokens.len() * d, "embedded tokens");
    match w.dtype() {
        Dtype::F32 => gather_rows(cpu, y, &w.buf, tokens, d),
        Dtype::Bf16 => {
            let w = w.buf.bf16();
            cpu.rows(y.f32_mut(), d, |t, y| {
                let x = &w[tokens[t] as usize * d..][..d];
                cpu.isa.run(Convert(y, x));
            });
        }
        Dtype::Q8 | Dtype::Q4 => panic!("a quantised matrix cannot be read by rows"),
    }
}

/// See [`crate::Device::cache_rows`], for caches in f32: `[slots, slot_rows, kv * p]`.
pub(super) fn cache_rows(cache: &mut Buf, x: &Buf, a: &CacheRows) {
    let (cache, x, width) = (cache.f32_mut(), x.f32(), a.kv * a.p);
    for s in a.spans {
        let rows = &x[s.start * width..][..s.len * width];
        cache[(s.slot * a.slot_rows + s.pos) * width..][..rows.len()].copy_from_slice(rows);
    }
}

/// See [`crate::Device::glu`].
pub(super) fn glu(cpu: &Cpu, y: &mut Buf, gate: &Buf, up: &Buf, act: Act) {
    assert!(y.len() == gate.len() && y.len() == up.len(), "arrays of a gated unit");
    let (y, gate, up) = (y.f32_mut(), gate.f32(), up.f32());
    let past = goes_past(y);
    cpu.split(4 * up.len(), Runs::new(y, GRAIN / 4), |index, y: &mut [f32]| {
        let part = index * (GRAIN / 4)..index * (GRAIN / 4) + y.len();
        cpu.isa.run(Glu { y, gate: &gate[part.clone()], up: &up[part], act, past });
    });
}

struct Glu<'a> {
    y: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
    act: Act,
    past: bool,
}

impl Op for Glu<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        for_act!(self.act, ACT => self.each::<S>(ACT));
    }
}

impl Glu<'_> {
    #[inline(always)]
    fn each<S: Tier>(&mut self, act: Act) {
        let parts = self.gate.chunks(LANES).zip(self.up.chunks(LANES));
        for (y, (gate, up)) in self.y.chunks_mut(LANES).zip(parts) {
            let (gate, up) = (V::<S>::load_part(gate), V::load_part(up));
            (activate(act, gate) * up).put(y, self.past);
        }
    }
}

/// See [`crate::Device::glu_bwd`].
pub(super) fn glu_bwd(cpu: &Cpu, dgate: &mut Buf, dup: &mut Buf, dy: &Buf, gate: &Buf, up: &Buf, act: Act) {
    let len = dy.len();
    let sizes = [dgate.len(), dup.len(), gate.len(), up.len()];
    assert_eq!(sizes, [len; 4], "arrays of a gated unit");
    let (dy, gate, up) = (dy.f32(), gate.f32(), up.f32());
    let block = GRAIN / 4;
    let (dgate, dup) = (dgate.f32_mut(), dup.f32_mut());
    let past = goes_past(dgate);
    let parts = (Runs::new(dgate, block), Runs::new(dup, block));
    cpu.split(4 * len, parts, |index, (dgate, dup): (&mut [f32], &mut [f32])| {
        let part = index * block..index * block + dgate.len();
        let (dy, gate, up) = (&dy[part.clone()], &gate[part.clone()], &up[part]);
        cpu.isa.run(GluBwd { dgate, dup, dy, gate, up, act, past });
    });
}

struct GluBwd<'a> {
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
    dy: &'a [f32],
    gate: &'a [f32],
    up: &'a [f32],
    act: Act,
    past: bool,
}

impl Op for GluBwd<'_> {
    type Out = ();
    #[inline(always)]
    fn eval<S: Tier>(mut self) {
        for_act!(self.act, ACT => self.each::<S>(ACT));
    }
}

impl GluBwd<'_> {
    #[inline(always)]
    fn each<S: Tier>(&mut self, act: Act) {
        let grads = self.dgate.chunks_mut(LANES).zip(self.dup.chunks_mut(LANES));
        let inputs = self.dy.chunks(LANES).zip(self.gate.chunks(LANES).zip(self.up.chunks(LANES)));
        for ((dgate, dup), (dy, (gate, up))) in grads.zip(inputs) {
            let (dy, gate, up) = (V::<S>::load_part(dy), V::load_part(gate), V::load_part(up));
            (dy * up * slope(act, gate)).put(dgate, self.past);
            (dy * activate(act, gate)).put(dup, self.past);
        }
    }
}
