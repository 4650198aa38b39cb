//! The published schema is the one that the parser has, and what we show people fits it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bottlecap::manifest::{Manifest, schema};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

#[test]
fn the_published_schema_is_what_the_program_prints() {
    let published = fs::read_to_string(root().join("docs/manifest.schema.json")).unwrap();
    assert_eq!(published, format!("{:#}\n", schema()), "bottlecap schema > docs/manifest.schema.json");
}

#[test]
fn every_key_of_the_schema_is_one_of_the_parser() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    for key in schema["properties"].as_object().unwrap().keys() {
        let found = Manifest::parse("b", &format!("{key}: {{wrong: [x]}}\n"), Path::new("/b"));
        let told = found.map_or_else(|found| found.to_string(), |_| String::new());
        assert!(!told.contains(&format!("unknown field `{key}`")), "{told}");
    }
    let found = Manifest::parse("b", "nothing-like-it: 1\n", Path::new("/b")).unwrap_err().to_string();
    let keys = schema["properties"].as_object().unwrap().keys().map(|key| format!("`{key}`"));
    for key in keys {
        assert!(found.contains(&key), "{key} is not in: {found}");
    }
}

/// What Python's `jsonschema` says of each.
fn validated(instances: &[Value]) -> Vec<bool> {
    let target = Path::new(env!("CARGO_BIN_EXE_bottlecap")).ancestors().nth(2).unwrap();
    let python = target.join("clients/py/bin/python");
    assert!(python.exists(), "no {}: run `scripts/need.sh pyclients`", python.display());
    let program = "import json, sys\n\
                   from jsonschema import Draft202012Validator as Validator\n\
                   told = json.load(sys.stdin)\n\
                   Validator.check_schema(told['schema'])\n\
                   print(json.dumps([Validator(told['schema']).is_valid(one) for one in told['instances']]))\n";
    let mut child = Command::new(python);
    let mut child = child.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let told = json!({"schema": schema(), "instances": instances}).to_string();
    child.stdin.take().unwrap().write_all(told.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{} (`scripts/need.sh pyclients`)", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_validator_of_others_says_what_the_parser_says() {
    let written: Vec<Value> = [
        "{}".to_owned(),
        fs::read_to_string(root().join("examples/demo/bottle.yaml")).unwrap(),
        bottlecap::preset::Preset::ClaudeCode.manifest(&"web".parse().unwrap()),
        bottlecap::preset::Preset::Codex.manifest(&"web".parse().unwrap()),
        bottlecap::preset::Preset::Shell.manifest(&"web".parse().unwrap()),
    ]
    .iter()
    .map(|text| serde_saphyr::from_str(text).unwrap())
    .collect();
    let more = [
        json!({"name": "web", "secrets": {"A": {"command": ["op", "read", "x"]}, "B": {"keyring": {"service": "api"}}}}),
        json!({"limits": {"memory": "2GiB", "processes": 512, "cpus": 1.5}, "mounts": [{"path": "/opt/tools"}]}),
        json!({"agent": {"preset": "claude-code", "skills": ["a"], "git": {"name": "A", "email": "a@example.com"}}}),
    ];
    let wrong = [
        json!({"routs": "routes.yaml"}),
        json!({"mounts": "tools"}),
        json!({"agent": {"preset": "claude_code"}}),
        json!({"agent": {"prompts": "a"}}),
        json!({"secrets": {"A": {"enviroment": "A"}}}),
        json!({"transparent": "perhaps"}),
        json!({"limits": {"memory": 5}}),
        json!(["name"]),
    ];
    let good: Vec<Value> = written.into_iter().chain(more).collect();
    let parses = |value: &Value| Manifest::parse("b", &value.to_string(), Path::new("/b")).is_ok();
    for (instances, wanted) in [(&good[..], true), (&wrong[..], false)] {
        for (instance, said) in instances.iter().zip(validated(instances)) {
            assert_eq!((parses(instance), said), (wanted, wanted), "{instance}");
        }
    }
}
