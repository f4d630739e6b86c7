//! How far results may be apart, each with its reason. Where nothing is said, bits must be equal.

/// MindSpore's trajectories, `f32` against `f32`: every parameter after every update, within this part of the tensor's largest absolute
/// value over all updates; every slot after the last, within this part of its largest there (of one element: of the largest of all
/// parameters' slots of that name). Both sides round, in a different order, over 12 updates.
pub const GOLDEN: f64 = 4e-6;

/// The same where updates are scaled by norms or by means over rows and columns, whose rounding is that of long sums.
pub const GOLDEN_NORMS: f64 = 1e-5;

/// PyTorch against this library where one goes on from the other's state: parameters after 10 more updates, within this part of the
/// tensor's largest absolute value. Measured: 5.6e-7 at worst.
pub const TORCH_STATE: f64 = 1e-6;

/// How much further GPUs other than llvmpipe may be from references in `f32`: they contract a product and a sum to one rounding.
/// Measured on an NVIDIA H200: 4.8e-6 where [`GOLDEN`] allows 4e-6, 1.5e-6 where [`TORCH_STATE`] allows 1e-6.
pub const CONTRACTED: f64 = 2.0;

/// MindSpore's schedules, evaluated in `f32`, against ours in `f64`: this part of the value; where the schedule subtracts,
/// of its largest value. That is three roundings.
pub const SCHEDULE: f64 = 2e-7;

/// Lists of rates and schedules against those that MindSpore and PyTorch compute in `f64`: this part of each value. A power is
/// a few roundings; PyTorch multiplies rates step by step.
pub const LIST: f64 = 1e-12;

/// Kernels in `f32` against the judge in `f64`, in units of [`UNIT`] times the judge's scale
/// ([`reference::train`](crate::reference::train)). A kernel rounds about ten times an update; the errors of earlier updates
/// fade with the means or add up with the path, which the scale contains.
pub const JUDGE: f64 = 16.0;

/// The same for rules that scale an update by the norm of the whole parameter before and after (AdaFactor): a rounding of the
/// norm moves all elements alike, and comes back through the next norm. Measured: 18 over 30 updates.
pub const JUDGE_FACTORED: f64 = 32.0;

/// The CPU against a GPU other than llvmpipe, in the same units. Vulkan allows 2.5 ulp for division, 3 ulp for the square root
/// (1 / inversesqrt), and the contraction of a product and a sum; with all three Adam was measured at 39 units after 100 updates.
/// On llvmpipe bits are equal.
pub const PARITY: f64 = 64.0;

/// An engine on a GPU other than llvmpipe against the naive one, as a part of the largest number of an array. Where a random bit
/// decides, an error of one rounding moves a number by a whole distance: 1.6 % of the largest for signed codes of 8 bits; and where
/// a sign decides, by twice the rate, which is 0.01. On llvmpipe bits are equal.
pub const ENGINE: f32 = 0.04;

/// The change of a rate that a bit-wise comparison must notice: 16 units in the last place.
pub const CONTROL_BITS: f64 = 1e-6;

/// The change of a rate that a comparison within [`PARITY`] or [`JUDGE`] must notice: far above both for any rule whose
/// updates are not tiny beside the parameter.
pub const CONTROL_BOUND: f64 = 1e-2;

/// Half the distance from 1 to the next `f32`: the largest relative error of one rounding.
pub const UNIT: f64 = 1.0 / 16_777_216.0;
