//! The guide: topic by topic, with samples that are compiled, run and checked.
//!
//! The topics follow MindSpore's guide to `nn.optim`, and go on from there. Each page stands alone. A first step is on the
//! [crate's page](crate). With all that the pages speak of, the documentation is
//! `cargo doc --open -p optimizers --features safetensors,serde`.
//!
//! | topic | page |
//! | --- | --- |
//! | what is trained: names, shapes, types, what is missing or frozen | [`parameters`] |
//! | getting memory into a step: vectors, 16 bits, array libraries, frameworks | [`memory`] |
//! | fixed and dynamic rates: lists, schedules, composition, plateaus | [`rates`] |
//! | L2 and decoupled decay, who decays | [`weight_decay`] |
//! | groups: listed, chosen by rule, with settings and rules of their own | [`groups`] |
//! | gradient centralization | [`centralization`] |
//! | clipping, and steps that are skipped | [`clipping`] |
//! | 16-bit parameters, masters, narrow state, loss scales | [`mixed_precision`] |
//! | micro-batches, and averages of the parameters | [`accumulation`] |
//! | rates, freezing and groups that change between steps | [`changes`] |
//! | row-sparse gradients, and rows that come and go | [`rows`] |
//! | saving, loading, resuming | [`saving`] |
//! | GPU devices and buffers | [`gpu`] |
//! | a rule of your own | [`own_rules`] |
//! | which numbers are the same, which are bounded, and why | [`numerics`] |
//! | from another library | [`from_mindspore`], [`from_pytorch`], [`from_candle`] |

/// Modules that hold a page each.
macro_rules! pages {
    ($($(#[$attribute:meta])* $page:ident)*) => {$(
        #[cfg_attr(feature = "cpu", doc = include_str!(concat!("guide/", stringify!($page), ".md")))]
        #[cfg_attr(not(feature = "cpu"), doc = "A page of builds with the feature `cpu`: there its samples run.")]
        $(#[$attribute])*
        pub mod $page {}
    )*};
}

pages! {
    parameters
    memory
    rates
    weight_decay
    groups
    centralization
    clipping
    mixed_precision
    accumulation
    changes
    rows
    /// # Files
    ///
    #[cfg_attr(all(feature = "cpu", feature = "safetensors"), doc = include_str!("guide/files.md"))]
    #[cfg_attr(not(feature = "safetensors"), doc = "With the feature `safetensors`: the module `checkpoint`.")]
    saving
    #[cfg_attr(all(feature = "cpu", feature = "gpu"), doc = include_str!("guide/buffers.md"))]
    gpu
    own_rules
    numerics
    from_mindspore
    from_pytorch
    from_candle
}
