//! The conformance suite: every rule on every backend. One binary; what the tests share is the library of this crate.

// Counts the allocations of a step. Holds the binary's allocator.
mod allocations;
// Odd calls: MindSpore's answers and this library's.
mod behaviours;
// What every rule computes, as numbers that are the same on every processor.
mod bits;
// What changes between steps, and what an optimizer says about itself.
mod changes;
// State files: resumed runs, damaged files, killed saves.
mod checkpoint;
// AdaFactor's second moments in half precision.
mod compression;
// Lists of rates against MindSpore's.
mod dynamic_lr;
// Engines driven directly, against the naive one.
mod engine;
// Every refusal: a typed error that names what is wrong, and nothing changed.
mod errors;
// Numbers in 16 and 8 bits, stochastic rounding, random bits.
mod formats;
// Trajectories that MindSpore, PyTorch and optax themselves produced.
mod golden;
// The caller's device and buffers, windows, dispatches, errors of the device.
#[cfg(feature = "gpu")]
mod gpu;
// Steps in the caller's encoder.
#[cfg(feature = "gpu")]
mod gpu_encoder;
// Who is in which group, and what a group inherits.
mod groups;
// The guide's tables of arguments against the configs.
mod guide;
// Every rule against its naive f64 twin.
mod judge;
// What documents point at.
mod links;
// Sequences of overflows against MindSpore's loss scale managers.
mod loss_scale;
// The strict reader of the golden trajectories' manifest.
mod manifest;
// The CPU and the GPU, bit for bit.
#[cfg(all(feature = "cpu", feature = "gpu"))]
mod parity;
// Loss scales, guards, clipping, accumulation, averages, fewer bits.
mod precision;
// Laws that hold for any rule and any data.
mod properties;
// Row-sparse gradients and rules of the user's own, on both backends.
#[cfg(all(feature = "cpu", feature = "gpu"))]
mod sparse;
// Rows of parameters that come, go and move.
mod surgery;
// Row-sparse gradients against a naive f64 loop, and their laws.
mod rows;
// Step scalars against values computed in another way.
mod scalars;
// Schedules against the values of MindSpore and PyTorch, and their laws.
mod schedules;
// Rules, rates and schedules as data: written, read back, refused.
mod serde;
// Every kernel through naga, without a driver.
#[cfg(feature = "gpu")]
mod shaders;
// State from one optimizer to another: what must fit, what is kept, what is converted.
mod state;
// The same bits for any number of threads.
#[cfg(feature = "cpu")]
mod threads;
// State that came from PyTorch, and that PyTorch went on from.
mod torch_state;
