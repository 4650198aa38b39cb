//! What was measured held against what is wanted.

/// The goals that were measured in this run.
#[derive(Default)]
pub(crate) struct Goals(Vec<String>);

impl Goals {
    /// The figure should not be more.
    pub(crate) fn at_most(&mut self, what: &str, figure: f64, most: f64, unit: &str) {
        self.add(what, figure, &format!("at most {most}{unit}"), unit, figure <= most);
    }

    /// The figure should not be less.
    pub(crate) fn at_least(&mut self, what: &str, figure: f64, least: f64, unit: &str) {
        self.add(what, figure, &format!("at least {least}{unit}"), unit, figure >= least);
    }

    fn add(&mut self, what: &str, figure: f64, goal: &str, unit: &str, met: bool) {
        let verdict = if met { "met" } else { "**missed**" };
        self.0.push(format!("| {what} | {figure:.2}{unit} | {goal} | {verdict} |"));
    }

    pub(crate) fn print(&self) {
        if !self.0.is_empty() {
            println!("\n| goal | measured | wanted | |\n|---|---:|---:|---|\n{}", self.0.join("\n"));
        }
    }
}
