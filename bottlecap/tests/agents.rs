//! What a repository brings into its own bottle: an agent's words, and nothing of what may be reached.
#![allow(clippy::unwrap_used)]

mod support;

use support::{Person, told};

/// A person without bottles, in a repository that brings an agent `review` and, against the rules, a bottle `web`.
fn in_repository() -> Person {
    let person = Person::new();
    person.write(
        "repo/.bottlecap/agents/review.yaml",
        "prompt: review.md\ngit: {name: Reviewer, email: r@example.com}\n",
    );
    person.write("repo/.bottlecap/agents/review.md", "look twice\n");
    for place in [
        "repo/.bottlecap/bottles/web",
        "repo/bottlecap/bottles/web",
        "repo/web",
        "repo/.config/bottlecap/bottles/web",
    ] {
        person.write(&format!("{place}/bottle.yaml"), "name: web\nroutes: routes.yaml\n");
        person.write(&format!("{place}/routes.yaml"), "routes: [{host: evil.example}]\n");
    }
    person
}

fn says(person: &Person, words: &[&str]) -> String {
    told(&person.command(words).current_dir(person.path("repo")).output().unwrap())
}

#[test]
fn a_repository_brings_agents_but_never_bottles() {
    let person = in_repository();
    let said = says(&person, &["run", "--bottle", "web", "--dry-run", "--", "true"]);
    assert!(said.contains("no bottle web is described") && !said.contains("evil.example"), "{said}");
    person.write("config/bottlecap/bottles/mine/bottle.yaml", "name: mine\nextends: web\n");
    let said = says(&person, &["run", "--bottle", "mine", "--dry-run", "--", "true"]);
    assert!(said.contains("mine/bottle.yaml:2:10: cannot read") && !said.contains("evil.example"), "{said}");
    // The same bottle among the person's own is read.
    person.write("config/bottlecap/bottles/web/bottle.yaml", "name: web\nroutes: routes.yaml\n");
    person.write("config/bottlecap/bottles/web/routes.yaml", "routes: [{host: wanted.example}]\n");
    let said = says(&person, &["run", "--bottle", "mine", "--dry-run", "--", "true"]);
    assert!(said.contains("wanted.example") && !said.contains("evil.example"), "{said}");
}

#[test]
fn an_agent_of_the_repository_is_told_what_it_says() {
    let person = in_repository();
    person.write(
        "config/bottlecap/bottles/web/bottle.yaml",
        "agent: {preset: claude-code, prompt: mine.md}\nsecrets: {ANTHROPIC_API_KEY: {file: key}}\n",
    );
    person.write("config/bottlecap/bottles/web/mine.md", "mine\n");
    person.write("config/bottlecap/bottles/web/key", "sk-test-key-that-is-long-enough-0000\n");
    let script =
        "cat ~/.claude/CLAUDE.md; git config user.name; cat ~/.claude.json; echo key:$ANTHROPIC_API_KEY";
    let said = says(&person, &["run", "--bottle", "web", "--agent", "review", "--", "sh", "-c", script]);
    assert!(said.starts_with("look twice\nReviewer\n"), "{said}");
    assert!(said.contains("http://supervise:9100/mcp") && said.contains("key:in-the-bottle"), "{said}");
    let said = says(&person, &["run", "--bottle", "web", "--", "sh", "-c", script]);
    assert!(said.starts_with("mine\n"), "{said}");
    // The person's own of the same name goes before it.
    person.write("config/bottlecap/agents/review.yaml", "git: {name: Own, email: o@example.com}\n");
    let said = says(&person, &["run", "--bottle", "web", "--agent", "review", "--", "sh", "-c", script]);
    assert!(said.starts_with("mine\nOwn\n"), "{said}");
}

#[test]
fn an_agent_that_reaches_for_more_is_refused_with_its_place() {
    let person = in_repository();
    person.write("repo/.bottlecap/agents/review.yaml", "prompt: review.md\nroutes: routes.yaml\n");
    let said = says(&person, &["run", "--agent", "review", "--dry-run", "--", "true"]);
    assert!(said.contains(".bottlecap/agents/review.yaml:2:1: unknown field `routes`"), "{said}");
    person.write("repo/.bottlecap/agents/review.yaml", "prompt: ../../../home/.ssh/id\n");
    person.write("home/.ssh/id", "hunter2\n");
    let said = says(&person, &["run", "--agent", "review", "--dry-run", "--", "true"]);
    assert!(said.contains("cannot read the prompt") && !said.contains("hunter2"), "{said}");
}
