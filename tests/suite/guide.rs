//! The guide's tables of arguments against the configs: each field is there once, with its default, and what differs is marked. And
//! the other places where users look for a rule: each has all of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, iter};

use optimizers::{
    AdaFactor, AdaMax, Adadelta, Adagrad, Adam, AdamOffload, AdamW, AdamWeightDecay, Asgd, DynamicLossScale,
    FixedLossScale, Ftrl, Lamb, Lars, LazyAdam, Momentum, NAdam, ProximalAdagrad, RAdam, RmsProp, Rprop, Rule, Sgd,
};
use serde_json::{Map, Value, from_value, to_value};

const PAGES: &[&str] = &["from_mindspore", "from_pytorch", "from_candle"];

/// Rules that none of those libraries has.
const NOWHERE: &[&str] = &["adan", "lion"];

/// A heading "## `theirs` → `ours`" and the table below it.
struct Section {
    theirs: String,
    ours: String,
    /// Argument, its default, field here, its default.
    rows: Vec<[String; 4]>,
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/optimizers/src/guide").join(name);
    fs::read_to_string(path.with_extension("md")).unwrap()
}

fn sections(page: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in page.lines() {
        if let Some((theirs, ours)) = line.strip_prefix("## ").and_then(|line| line.split_once(" → ")) {
            let name = |text: &str| text.trim_matches('`').to_owned();
            sections.push(Section { theirs: name(theirs), ours: name(ours), rows: Vec::new() });
        } else if let (Some(row), Some(section)) = (line.strip_prefix("| "), sections.last_mut()) {
            let cells: Vec<String> = row.trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
            let cells = cells.try_into().unwrap_or_else(|cells| panic!("{}: {cells:?}", section.theirs));
            section.rows.push(cells);
        }
    }
    for section in &mut sections {
        assert_eq!(section.rows[1][0], "---", "{}: a head and a line", section.theirs);
        section.rows.drain(..2);
    }
    sections
}

/// The fields of a config by the name that the guide calls it, and whether it is a rule.
fn fields(ours: &str) -> Option<(Map<String, Value>, bool)> {
    let rule: Rule = match ours {
        "Sgd" => Sgd::default().into(),
        "Sgd::torch()" => Sgd::torch().into(),
        "Momentum" => Momentum::new(0.1, 0.9).into(),
        "Adam" => Adam::default().into(),
        "Adam::torch()" => Adam::torch().into(),
        "LazyAdam" => LazyAdam::default().into(),
        "AdamOffload" => AdamOffload::default().into(),
        "AdamWeightDecay" => AdamWeightDecay::default().into(),
        "AdamW" => AdamW::default().into(),
        "Adagrad" => Adagrad::default().into(),
        "Adagrad::torch()" => Adagrad::torch().into(),
        "ProximalAdagrad" => ProximalAdagrad::default().into(),
        "Ftrl" => Ftrl::default().into(),
        "RmsProp" => RmsProp::default().into(),
        "RmsProp::torch()" => RmsProp::torch().into(),
        "AdaFactor" => AdaFactor::default().into(),
        "Lamb" => Lamb::new(0.1).into(),
        "Lars" => Lars::new(Momentum::new(0.1, 0.9)).into(),
        "AdaMax" => AdaMax::default().into(),
        "AdaMax::torch()" => AdaMax::torch().into(),
        "NAdam" => NAdam::default().into(),
        "RAdam" => RAdam::default().into(),
        "Adadelta" => Adadelta::default().into(),
        "Asgd" => Asgd::default().into(),
        "Asgd::torch()" => Asgd::torch().into(),
        "Rprop" => Rprop::default().into(),
        "Rprop::torch()" => Rprop::torch().into(),
        "DynamicLossScale" => return Some((object(to_value(DynamicLossScale::default()).unwrap()), false)),
        "FixedLossScale" => return Some((object(to_value(FixedLossScale::default()).unwrap()), false)),
        _ => return None,
    };
    Some((object(to_value(rule).unwrap()), true))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

/// A default as the guide writes it; numbers as `f64`.
fn value(text: &str) -> Option<Value> {
    let number = |text: &str| text.parse::<f64>().ok().map(Value::from);
    match text {
        "none" => Some(Value::Null),
        "true" | "false" => Some((text == "true").into()),
        _ => match text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
            Some(pair) => pair.split(", ").map(number).collect::<Option<Vec<_>>>().map(Value::from),
            None => number(text),
        },
    }
}

/// A value with all its numbers as `f64`.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(values) => values.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// What is wrong with a section.
fn problems(section: &Section) -> Vec<String> {
    let Some((fields, is_rule)) = fields(&section.ours) else { return vec![format!("no config {:?}", section.ours)] };
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for [argument, theirs, here, ours] in &section.rows {
        let Some(field) = here.strip_prefix('`').and_then(|here| here.strip_suffix('`')) else { continue };
        if !seen.insert(field) {
            problems.push(format!("{field} stands twice"));
        }
        let Some(default) = fields.get(field) else {
            problems.push(format!("{field} is no field"));
            continue;
        };
        let marked = ours.starts_with("**");
        let ours = ours.trim_matches('*');
        if argument != "–" && marked != (ours != theirs) {
            problems.push(format!("{field}: {theirs} there, {ours} here, and the mark says otherwise"));
        }
        let is_right = if ours == "required" {
            let mut fields = fields.clone();
            fields.remove(field);
            is_rule && from_value::<Rule>(fields.into()).is_err()
        } else {
            value(ours) == Some(plain(default))
        };
        if !is_right {
            problems.push(format!("{field}: {ours} in the table, {default} in the code"));
        }
    }
    let missing = fields.keys().filter(|field| *field != "rule" && !seen.contains(field.as_str()));
    problems.extend(missing.map(|field| format!("{field} is missing")));
    problems
}

#[test]
fn the_tables_tell_every_field_and_its_default() {
    let mut rules: BTreeSet<String> = NOWHERE.iter().map(ToString::to_string).collect();
    for name in PAGES {
        let sections = sections(&page(name));
        assert!(!sections.is_empty(), "{name} has no table");
        for section in sections {
            assert_eq!(problems(&section), [""; 0], "{name}: {}", section.theirs);
            rules.extend(fields(&section.ours).and_then(|(fields, _)| Some(fields.get("rule")?.as_str()?.to_owned())));
        }
    }
    let all: BTreeSet<String> = Rule::all().iter().map(|rule| rule.spec().name().to_owned()).collect();
    let places = "crates/optimizers/src/guide/from_*.md, or in NOWHERE of tests/suite/guide.rs";
    assert_eq!(rules, all, "the rules with a table in {places}");
}

/// The control: every kind of mistake is found.
#[test]
fn a_table_that_is_wrong_is_noticed() {
    let adam = |from: &str, to: &str| {
        let page = page("from_mindspore");
        let (_, section) = page.split_once("## `nn.Adam` ").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        assert!(section.contains(from), "{from}");
        let text = iter::once("## `nn.Adam` ").chain([section.replacen(from, to, 1).as_str()]).collect::<String>();
        problems(&sections(&text)[0])
    };
    assert_eq!(adam("`beta1` | 0.9", "`beta1` | 0.9"), [""; 0]);
    for (from, to, problem) in [
        (
            "| `beta1` | 0.9 | `beta1` | 0.9 |",
            "| `beta1` | 0.8 | `beta1` | 0.8 |",
            "beta1: 0.8 in the table, 0.9 in the code",
        ),
        ("`beta1` | 0.9 |\n", "`beta1` | **0.9** |\n", "beta1: 0.9 there, 0.9 here, and the mark says otherwise"),
        ("| `beta1` | 0.9 |", "| `beta1` | 0.8 |", "beta1: 0.8 there, 0.9 here, and the mark says otherwise"),
        ("| `beta1` | 0.9 | `beta1` | 0.9 |\n", "", "beta1 is missing"),
        ("| `beta1` | 0.9 | `beta1`", "| `beta1` | 0.9 | `betal`", "betal is no field"),
        ("| `beta2` | 0.999 | `beta2`", "| `beta2` | 0.999 | `beta1`", "beta1 stands twice"),
        ("| `lr` | 1e-3 |", "| `lr` | **required** |", "lr: required in the table, 0.001 in the code"),
        ("→ `Adam`", "→ `Adan`", "no config \"Adan\""),
    ] {
        let found = adam(from, to);
        assert!(found.iter().any(|found| found == problem), "{problem}: {found:?}");
    }
}

/// The names that stand in a file.
type Find = fn(&str) -> BTreeSet<String>;

/// The places beside code and guide where every rule stands: the file, how names are found in it, whether it is the config's name.
const PLACES: [(&str, Find, bool); 4] = [
    ("README.md", in_table, false),
    ("crates/optim-core/src/lib.rs", exported, true),
    ("crates/optimizers/src/lib.rs", exported, true),
    ("crates/optimizers/examples/digits/rules.rs", in_example, false),
];

/// The second cells of the table of rules.
fn in_table(text: &str) -> BTreeSet<String> {
    let rows = text.lines().skip_while(|line| !line.starts_with("| rule | file name |")).skip(2);
    let rows = rows.map_while(|line| line.strip_prefix("| "));
    rows.filter_map(|row| Some(row.split(" | ").nth(1)?.trim_matches('`').to_owned())).collect()
}

/// What is re-exported.
fn exported(text: &str) -> BTreeSet<String> {
    let words = text.split("pub use ").skip(1).filter_map(|rest| rest.split_once(';'));
    words.flat_map(|(list, _)| list.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned)).collect()
}

/// The names on the command line of the example.
fn in_example(text: &str) -> BTreeSet<String> {
    text.split("Entry::new(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect()
}

/// The places where a rule of this name, with a config of this name, is missing.
fn lacking(name: &str, config: &str) -> Vec<&'static str> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let lacks = |path: &str, find: Find, by_config| {
        !find(&fs::read_to_string(root.join(path)).unwrap()).contains(if by_config { config } else { name })
    };
    PLACES.iter().filter(|(path, find, by_config)| lacks(path, *find, *by_config)).map(|(path, ..)| *path).collect()
}

/// A new rule is not forgotten anywhere, and a control: one that there is not is nowhere.
#[test]
fn every_rule_stands_where_users_look() {
    for rule in Rule::all() {
        let (name, shown) = (rule.spec().name(), format!("{rule:?}"));
        let (config, _) = shown.split_once('(').unwrap();
        assert_eq!(lacking(name, config), [""; 0], "the files that do not name {config}, {name:?}");
    }
    assert_eq!(lacking("muon", "Muon"), PLACES.map(|(path, ..)| path));
    assert_eq!(lacking("lion", "Muon"), [PLACES[1].0, PLACES[2].0]);
    assert_eq!(lacking("muon", "Lion"), [PLACES[0].0, PLACES[3].0]);
}
