//! The definition checks itself: its gradients against dual numbers, its results against themselves.

use zamba_kernels::cases::{all, check_cutting};
use zamba_kernels::reference::Reference;
use zamba_kernels::{Device, Dtype, Linear, Mat};

/// Runs `check` on all cases and shows all failures at once.
fn each_case(check: impl Fn(&zamba_kernels::cases::Case) -> Result<(), String>) {
    let failures: Vec<String> = all().iter().filter_map(|case| check(case).err()).collect();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn gradients_are_derivatives_of_the_definition() {
    assert!(all().iter().filter(|case| case.has_gradient()).count() > 50);
    each_case(|case| case.check_gradient());
}

/// Overwriting, adding, offsets and rounding of the reference device, on top of the same definition.
#[test]
fn reference_device_is_the_definition() {
    each_case(|case| case.check(&Reference::new()));
}

#[test]
fn reference_repeats_its_bits() {
    each_case(|case| match case.run_bits(&Reference) == case.run_bits(&Reference) {
        true => Ok(()),
        false => Err(case.name()),
    });
}

#[test]
fn reference_gives_equal_bits_however_a_sequence_is_cut() {
    check_cutting(&Reference::new()).unwrap();
}

/// Which operands are rounded with bf16 weights cannot show in a gradient check: 1 + 2^-8 + 2^-12 becomes
/// 1 + 2^-7 as `x` and as `dy`, but not in the gradient of the bias.
#[test]
fn bf16_weights_round_the_operands_of_products_alone() {
    let dev = Reference::new();
    let (exact, rounded) = (1.0 + 2f32.powi(-8) + 2f32.powi(-12), 1.0 + 2f32.powi(-7));
    let buf = |dtype, value: f32| {
        let mut buf = dev.alloc(dtype, 1);
        dev.upload(&mut buf, 0, &[value]);
        buf
    };
    let (x, dy, bias) = (buf(Dtype::F32, exact), buf(Dtype::F32, exact), buf(Dtype::F32, 0.0));
    for (dtype, operand) in [(Dtype::Bf16, rounded), (Dtype::F32, exact)] {
        let w = Mat::new(1, 1, buf(dtype, 2.0));
        let bias = Some(&bias);
        let a = Linear {
            t: 1,
            groups: 1,
            o: 1,
            i: 1,
            x: &x,
            x_stride: 1,
            x_group: 0,
            x_at: 0,
            w: &w,
            w_at: 0,
            bias,
        };
        let (mut y, mut dx) = (dev.alloc(Dtype::F32, 1), dev.alloc(Dtype::F32, 1));
        let mut flat = dev.alloc(Dtype::F32, 2);
        dev.linear(&mut y, a);
        dev.linear_dx(&mut dx, &dy, a);
        dev.linear_dw(&mut flat, 0, Some(1), &dy, a);
        let mut got = [0.0; 4];
        dev.download(&mut got[..1], &y, 0);
        dev.download(&mut got[1..2], &dx, 0);
        dev.download(&mut got[2..], &flat, 0);
        assert_eq!(got, [2.0 * operand, 2.0 * operand, operand * operand, exact], "{dtype:?} weights");
    }
}
