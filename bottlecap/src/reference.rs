//! The reference of the command line, made from the command line itself.

use std::fmt::Write;

use clap::Command;

/// All commands of `program` with their help, as Markdown.
#[must_use]
pub fn markdown(program: Command) -> String {
    let mut program = program.mut_args(|arg| arg.hide_env_values(true));
    program.build();
    let mut text = String::from(
        "# The commands\n\nMade from the program by `bottlecap reference`; a test keeps it so.\n",
    );
    add(&mut text, program, 2);
    text
}

fn add(text: &mut String, mut command: Command, level: usize) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    write!(text, "\n{} {name}\n\n```text\n{}\n```\n", "#".repeat(level), lines.join("\n"))
        .expect("a string takes every write");
    for below in command.get_subcommands().filter(|below| below.get_name() != "help" && !below.is_hide_set())
    {
        add(text, below.clone().mut_args(|arg| arg.hide_env_values(true)), (level + 1).min(4));
    }
}
