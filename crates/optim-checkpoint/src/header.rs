//! The header of a file: JSON that says where each array is.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use optim_core::Rate;
use optim_core::backend::Element;
use optim_core::state::{GroupState, StateArray, StateMeta, VERSION};
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The longest header. The reader that most programs use has the same limit.
pub(crate) const MOST_BYTES: u64 = 100_000_000;

/// The most numbers of the lists of all groups together: 20 MB.
const MOST_NUMBERS: usize = 1 << 20;

/// The most axes of an array.
const MOST_AXES: usize = 64;

/// What `__metadata__` says under `format`.
const FORMAT: &str = "optimizers";

const METADATA: &str = "__metadata__";

/// A header that makes sense.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) meta: StateMeta,
    pub(crate) arrays: Vec<StateArray>,
    /// Where each array begins, in bytes from the end of the header.
    pub(crate) starts: Vec<u64>,
}

/// The order in which arrays stand in a file: by falling size of their elements, so that each is aligned.
pub(crate) fn order(arrays: &[StateArray]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..arrays.len()).collect();
    order.sort_by_key(|&array| std::cmp::Reverse(arrays[array].element.size()));
    order
}

/// The header of a file, filled up to a multiple of 8 bytes; or what cannot be written.
pub(crate) fn encode(meta: &StateMeta, arrays: &[StateArray], order: &[usize]) -> Result<Vec<u8>, String> {
    let mut text = b"{".to_vec();
    let mut entry = |name: &str, value: &dyn Fn(&mut Vec<u8>) -> serde_json::Result<()>| {
        if text.len() > 1 {
            text.push(b',');
        }
        serde_json::to_writer(&mut text, name)?;
        text.push(b':');
        value(&mut text)
    };
    let metadata = metadata(meta).map_err(|error| error.to_string())?;
    let mut written = entry(METADATA, &|text| serde_json::to_writer(text, &metadata));
    let mut start = 0;
    for &array in order {
        let array = &arrays[array];
        let Some(end) = array.bytes().and_then(|bytes| u64::try_from(bytes).ok()?.checked_add(start)) else {
            return Err(format!("{:?} is too large", array.name));
        };
        let info =
            Info { dtype: name(array.element).into(), shape: Shape(array.shape.clone()), data_offsets: [start, end] };
        start = end;
        written = written.and_then(|()| entry(&array.name, &|text| serde_json::to_writer(text, &info)));
    }
    written.map_err(|error| error.to_string())?;
    text.push(b'}');
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("its header has {} bytes, {MOST_BYTES} are allowed", text.len()));
    }
    Ok(text)
}

/// A header over so many bytes of data; or what is wrong with it.
pub(crate) fn decode(text: &[u8], data: u64) -> Result<Header, String> {
    if text.first() != Some(&b'{') {
        return Err("the header is not a JSON object".into());
    }
    let Entries { metadata, arrays: entries } =
        serde_json::from_slice(text).map_err(|error| format!("the header: {error}"))?;
    let meta = meta(&metadata)?;

    let mut sorted: Vec<usize> = (0..entries.len()).collect();
    sorted.sort_by_key(|&array| entries[array].1.data_offsets);
    let mut position = 0;
    for &array in &sorted {
        let (name, Info { data_offsets: [start, end], .. }) = &entries[array];
        if *start != position || end < start {
            return Err(format!("{name:?} is at {start} to {end}, expected to begin at {position}"));
        }
        position = *end;
    }
    if position != data {
        return Err(format!("its arrays end at {position}, it has {data} bytes of data"));
    }

    let mut names = HashSet::with_capacity(entries.len());
    if let Some((name, _)) = entries.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(format!("{name:?} stands twice in the header"));
    }
    drop(names);
    let (mut arrays, mut starts) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
    for (name, Info { dtype, shape: Shape(shape), data_offsets: [start, end] }) in entries {
        let Some(element) = element(&dtype) else { return Err(format!("{name:?} is {dtype:?}, an unknown type")) };
        let array = StateArray { name, element, shape };
        if array.bytes().and_then(|bytes| u64::try_from(bytes).ok()) != Some(end - start) {
            let StateArray { name, shape, .. } = &array;
            return Err(format!("{name:?} has {} bytes, not those of {shape:?} of {element}", end - start));
        }
        arrays.push(array);
        starts.push(start);
    }
    Ok(Header { meta, arrays, starts })
}

fn name(element: Element) -> &'static str {
    match element {
        Element::F32 => "F32",
        Element::F16 => "F16",
        Element::Bf16 => "BF16",
        Element::U16 => "U16",
        Element::U8 => "U8",
    }
}

fn element(name: &str) -> Option<Element> {
    match name {
        "F32" => Some(Element::F32),
        "F16" => Some(Element::F16),
        "BF16" => Some(Element::Bf16),
        "U16" => Some(Element::U16),
        "U8" => Some(Element::U8),
        _ => None,
    }
}

/// The description as `__metadata__` has it.
fn metadata(meta: &StateMeta) -> serde_json::Result<BTreeMap<&'static str, String>> {
    let StateMeta { version, library, step, seed, loss_scale, guard, groups, parameters } = meta;
    Ok(BTreeMap::from([
        ("format", FORMAT.to_owned()),
        ("version", version.to_string()),
        ("library", library.clone()),
        ("step", step.to_string()),
        ("seed", seed.to_string()),
        ("loss_scale", serde_json::to_string(loss_scale)?),
        ("guard", serde_json::to_string(guard)?),
        ("groups", serde_json::to_string(&*without_long_lists(groups))?),
        ("parameters", serde_json::to_string(parameters)?),
    ]))
}

/// The groups without the lists of rates and decays, if these are very long: a list stands in each group that inherits it.
fn without_long_lists(groups: &[GroupState]) -> Cow<'_, [GroupState]> {
    fn numbers(rate: &Rate) -> usize {
        if let Rate::List(list) = rate { list.len() } else { 0 }
    }
    let of_config = |group: &GroupState| group.config.as_ref().map_or(0, |rule| numbers(rule.spec().lr()));
    let of_rates =
        |group: &GroupState| [&group.lr, &group.weight_decay].into_iter().flatten().map(numbers).sum::<usize>();
    if groups.iter().map(|group| of_config(group) + of_rates(group)).sum::<usize>() <= MOST_NUMBERS {
        return Cow::Borrowed(groups);
    }
    let without = |group: &GroupState| GroupState {
        config: group.config.clone().filter(|_| of_config(group) == 0),
        lr: group.lr.clone().filter(|rate| numbers(rate) == 0),
        weight_decay: group.weight_decay.clone().filter(|rate| numbers(rate) == 0),
        ..group.clone()
    };
    Cow::Owned(groups.iter().map(without).collect())
}

fn meta(metadata: &BTreeMap<String, String>) -> Result<StateMeta, String> {
    let text = |key: &str| match metadata.get(key) {
        Some(text) => Ok(text.as_str()),
        None => Err(format!("its {METADATA} has no {key:?}")),
    };
    fn parsed<T: DeserializeOwned>(key: &str, text: &str) -> Result<T, String> {
        let read = serde_json::from_str(text).or_else(|error| match numbers_are_numbers() {
            true => Err(error),
            false => serde_json::from_str(text).and_then(serde_json::from_value),
        });
        read.map_err(|error| format!("{METADATA}, {key:?}: {error}"))
    }
    let format = text("format")?;
    if format != FORMAT {
        return Err(format!("its format is {format:?}, expected {FORMAT:?}"));
    }
    let version: u32 = parsed("version", text("version")?)?;
    if version != VERSION {
        return Err(format!("its layout has version {version}, this library reads version {VERSION}"));
    }
    Ok(StateMeta {
        version,
        library: text("library")?.into(),
        step: parsed("step", text("step")?)?,
        seed: parsed("seed", text("seed")?)?,
        loss_scale: parsed("loss_scale", text("loss_scale")?)?,
        guard: parsed("guard", text("guard")?)?,
        groups: parsed("groups", text("groups")?)?,
        parameters: parsed("parameters", text("parameters")?)?,
    })
}

/// Whether `serde_json` gives a number as one where anything may stand. With its feature `arbitrary_precision`, which any crate of the
/// program may ask for, it does so by way of a value only.
fn numbers_are_numbers() -> bool {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Any {
        Number(f64),
    }
    matches!(serde_json::from_str("1"), Ok(Any::Number(1.0)))
}

/// Where an array is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// A shape of at most 64 axes.
#[derive(Debug, Serialize)]
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Axes;

        impl<'de> Visitor<'de> for Axes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of extents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = seq.next_element()? {
                    if shape.len() == MOST_AXES {
                        return Err(A::Error::custom(format_args!("a shape of more than {MOST_AXES} axes")));
                    }
                    shape.push(extent);
                }
                Ok(Shape(shape))
            }
        }

        deserializer.deserialize_seq(Axes)
    }
}

/// The entries of a header in their order. Names may still be there twice, keys of `__metadata__` not.
struct Entries {
    metadata: BTreeMap<String, String>,
    arrays: Vec<(String, Info)>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the header of a safetensors file")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let (mut metadata, mut arrays) = (None, Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    if name != METADATA {
                        arrays.push((name, map.next_value()?));
                    } else if metadata.replace(map.next_value::<Metadata>()?).is_some() {
                        return Err(A::Error::custom(format_args!("{METADATA} stands twice")));
                    }
                }
                let Metadata(metadata) = metadata.unwrap_or_default();
                Ok(Entries { metadata, arrays })
            }
        }

        deserializer.deserialize_map(All)
    }
}

/// Texts by key.
#[derive(Default)]
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if texts.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("the key {key:?} stands twice in {METADATA}")));
                    }
                    texts.insert(key, map.next_value()?);
                }
                Ok(Metadata(texts))
            }
        }

        deserializer.deserialize_map(Texts)
    }
}
