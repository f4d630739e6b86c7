//! What the documents point at: links, anchors, paths and examples that they name must exist. Nothing is asked of the network, and
//! links between items are rustdoc's to check.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Endings of files that a document may name without a folder.
const ENDINGS: &[&str] = &[".md", ".rs", ".sh", ".toml", ".py", ".yml", ".wgsl", ".lock"];

/// Paths that are made, not kept, and those of a reader's own project.
const NOT_KEPT: &[&str] = &["target/", "src/main.rs"];

/// The files of the repository, and the folders above them, from its root.
struct Repository {
    root: PathBuf,
    paths: BTreeSet<String>,
}

impl Repository {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let mut repository = Self { root: root.clone(), paths: BTreeSet::new() };
        repository.walk(&root);
        repository
    }

    fn walk(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&self.root).unwrap().to_str().unwrap().replace('\\', "/");
            let is_kept =
                name != "target" && (!name.starts_with('.') || [".ci", ".github", ".gitignore"].contains(&&*name));
            if path.is_dir() && (is_kept || name.starts_with(".github/")) {
                self.walk(&path);
            }
            if is_kept || name.starts_with(".github/") || name.starts_with(".ci/") {
                self.paths.insert(name);
            }
        }
    }

    /// The documents, from the root.
    fn documents(&self) -> Vec<&str> {
        self.paths.iter().map(String::as_str).filter(|path| path.ends_with(".md")).collect()
    }

    /// Whether some path is this one, or ends with it: documents name files from the folder that they speak of.
    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.paths.contains(path) || self.paths.iter().any(|kept| kept.ends_with(&format!("/{path}")))
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }

    /// What a document points at that is not there.
    fn problems(&self, document: &str, text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let (prose, code) = parts(text);
        for target in targets(&prose) {
            if let Err(problem) = self.follow(document, text, target) {
                problems.push(format!("{target}: {problem}"));
            }
        }
        for span in prose.split('`').skip(1).step_by(2) {
            if looks_like_a_path(span) && !self.has(span) {
                problems.push(format!("{span}: no such path"));
            }
        }
        let words: Vec<&str> = prose.split_whitespace().chain(code.split_whitespace()).collect();
        for pair in words.windows(2) {
            let name = pair[1].trim_matches(|c: char| !(c.is_alphanumeric() || c == '_'));
            let example = [format!("examples/{name}.rs"), format!("examples/{name}/main.rs")];
            if pair[0].ends_with("--example") && !example.iter().any(|path| self.has(path)) {
                problems.push(format!("--example {name}: no such example"));
            }
        }
        for word in code.split_whitespace() {
            if word.starts_with("scripts/") && !self.has(word) {
                problems.push(format!("{word}: no such script"));
            }
        }
        problems
    }

    fn follow(&self, document: &str, text: &str, target: &str) -> Result<(), String> {
        if let Some(address) = target.strip_prefix("https://").or_else(|| target.strip_prefix("http://")) {
            let host = address.split('/').next().unwrap_or_default();
            let is_allowed = |c: char| c.is_ascii_graphic() && !"<>\"\\^`{|}".contains(c);
            return if host.contains('.')
                && !host.starts_with('.')
                && !host.ends_with('.')
                && address.chars().all(is_allowed)
            {
                Ok(())
            } else {
                Err("no address".into())
            };
        }
        if target.contains("::") || !target.contains(['.', '/', '#']) {
            return Ok(()); // an item, which rustdoc looks for
        }
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let mut pointed = document.to_owned();
        if !path.is_empty() {
            pointed = Path::new(document).parent().unwrap_or(Path::new("")).join(path).to_str().unwrap().to_owned();
            if !self.root.join(&pointed).exists() {
                return Err("no such file".into());
            }
        }
        let pointed = if path.is_empty() {
            text.to_owned()
        } else {
            fs::read_to_string(self.root.join(pointed)).unwrap_or_default()
        };
        if anchor.is_empty() || parts(&pointed).0.lines().filter_map(heading).any(|heading| heading == anchor) {
            return Ok(());
        }
        Err("no such heading".into())
    }
}

/// Prose, and what stands in fences of a shell.
fn parts(text: &str) -> (String, String) {
    let (mut prose, mut code, mut fence) = (String::new(), String::new(), None);
    for line in text.lines() {
        match (fence, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => fence = Some(language),
            (Some(_), Some(_)) => fence = None,
            (None, None) => prose.extend([line, "\n"]),
            (Some("sh"), None) => code.extend([line, "\n"]),
            (Some(_), None) => {}
        }
    }
    (prose, code)
}

/// The targets of inline links.
fn targets(prose: &str) -> impl Iterator<Item = &str> {
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.trim())
}

/// The anchor of a heading.
fn heading(line: &str) -> Option<String> {
    let words = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

fn looks_like_a_path(span: &str) -> bool {
    let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let named = span.contains('/') || ENDINGS.iter().any(|ending| span.ends_with(ending) && span.len() > ending.len());
    let letters = span.chars().filter(char::is_ascii_alphabetic).count() > 2;
    plain && named && letters && !NOT_KEPT.iter().any(|path| span.starts_with(path))
}

#[test]
fn documents_point_at_what_there_is() {
    let repository = Repository::read();
    let documents = repository.documents();
    for expected in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "benches/README.md"] {
        assert!(documents.contains(&expected), "{expected} is not among {documents:?}");
    }
    let problems: Vec<_> = (documents.into_iter())
        .flat_map(|document| {
            let found = repository.problems(document, &repository.text(document));
            found.into_iter().map(move |problem| format!("{document}: {problem}"))
        })
        .collect();
    assert_eq!(problems, [""; 0]);
}

/// The control: what is not there is found, what is there is not.
#[test]
fn a_broken_link_is_noticed() {
    let repository = Repository::read();
    let problems = |text: &str| repository.problems("README.md", text);
    for (text, expected) in [
        ("[a](ARCHITECTURE.md)", None),
        ("[a](ARCHITEKTUR.md)", Some("ARCHITEKTUR.md: no such file")),
        ("[a](ARCHITECTURE.md#adding-a-rule)", None),
        ("[a](ARCHITECTURE.md#no-heading)", Some("ARCHITECTURE.md#no-heading: no such heading")),
        ("# A, b\n[a](#a-b)", None),
        ("[a](#a-b)", Some("#a-b: no such heading")),
        ("[a](https://docs.rs/optimizers)", None),
        ("[a](https://docs)", Some("https://docs: no address")),
        ("[a](crate::Adam)", None),
        ("`optim-cpu/src/reduce.rs`, `scripts/test.sh`, `lib.rs`, `target/a.svg`, `a / b`, `1/2`", None),
        ("`optim-cpu/src/reduced.rs`", Some("optim-cpu/src/reduced.rs: no such path")),
        ("`scripts/tests.sh`", Some("scripts/tests.sh: no such path")),
        ("```sh\nscripts/test.sh\n```", None),
        ("```sh\nscripts/tests.sh\n```", Some("scripts/tests.sh: no such script")),
        ("```sh\ncargo run --example digits # as it is\n```", None),
        ("```sh\ncargo run --example numbers\n```", Some("--example numbers: no such example")),
        ("```\n[a](b.md)\n```", None),
    ] {
        assert_eq!(problems(text), expected.into_iter().collect::<Vec<_>>(), "{text}");
    }
}
