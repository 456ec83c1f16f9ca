//! A flame graph: frames as wide as what they cost, parts above the whole.

use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 18.0;
/// Frames that are narrower could not be seen.
const NARROWEST: f64 = 0.3;
/// Of a letter, on average.
const LETTER: f64 = 6.5;

/// Colours of the frames right above the whole, and of all above those.
const COLOURS: [&str; 4] = ["#e8705a", "#f0b55a", "#6fa8dc", "#8fc07a"];
const WHOLE: &str = "#d0d0d0";

/// Something that instructions were spent on.
#[derive(Debug, Default)]
pub struct Frame {
    name: String,
    instructions: u64,
    parts: Vec<Frame>,
}

impl Frame {
    /// Adds what was spent on the part that `path` leads to.
    pub fn add(&mut self, path: &[String], instructions: u64) {
        self.instructions += instructions;
        let Some((name, rest)) = path.split_first() else { return };
        let at = self.parts.iter().position(|part| part.name == *name).unwrap_or_else(|| {
            self.parts.push(Self { name: name.clone(), ..Self::default() });
            self.parts.len() - 1
        });
        self.parts[at].add(rest, instructions);
    }

    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Names and costs of the parts, the most expensive first.
    pub fn children(&self) -> Vec<(&str, u64)> {
        self.sorted().into_iter().map(|part| (&*part.name, part.instructions)).collect()
    }

    /// A line for each innermost part: the names that lead to it, with semicolons between them, and its instructions. Other
    /// programs draw such stacks as well.
    pub fn folded(&self) -> String {
        let line = |(path, instructions): (Vec<&str>, u64)| {
            let names: Vec<_> = path.into_iter().map(|name| name.replace(';', ",")).collect();
            format!("{} {instructions}\n", names.join(";"))
        };
        self.innermost().into_iter().map(line).collect()
    }

    /// The innermost parts: the names that lead to each, and its instructions.
    pub fn innermost(&self) -> Vec<(Vec<&str>, u64)> {
        let mut found = Vec::new();
        for part in self.sorted() {
            if part.parts.is_empty() {
                found.push((vec![&*part.name], part.instructions));
            }
            found.extend(part.innermost().into_iter().map(|(mut path, instructions)| {
                path.insert(0, &part.name);
                (path, instructions)
            }));
        }
        found
    }

    /// The graph as an SVG file. Each frame says its name, its instructions and its share when it is pointed at.
    pub fn svg(&self) -> String {
        let height = HEIGHT * f64::from(self.depth());
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n"
        );
        let scale = WIDTH / self.instructions.max(1) as f64;
        self.draw(&mut svg, &Spot { left: 0.0, top: height - HEIGHT, scale, whole: self.instructions, colour: WHOLE });
        svg.push_str("</svg>\n");
        svg
    }

    fn draw(&self, svg: &mut String, spot: &Spot) {
        let Spot { left, top, scale, whole, colour } = *spot;
        let width = self.instructions as f64 * scale;
        if width < NARROWEST {
            return;
        }
        let name = escape(if self.name.is_empty() { "all" } else { &self.name });
        let share = 100.0 * self.instructions as f64 / whole.max(1) as f64;
        let letters = (width / LETTER) as usize;
        let shown = if letters < 3 { String::new() } else { self.name.chars().take(letters).collect() };
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<g><title>{name}: {} instructions, {share:.2} %</title><rect x=\"{left:.2}\" y=\"{top}\" width=\"{width:.2}\" \
             height=\"{HEIGHT}\" fill=\"{colour}\" stroke=\"white\" stroke-width=\"0.5\"/><text x=\"{:.2}\" y=\"{}\">{}</text></g>",
            self.instructions,
            left + 3.0,
            top + HEIGHT - 5.0,
            escape(&shown)
        );
        let mut left = left;
        for (at, part) in self.sorted().into_iter().enumerate() {
            let colour = if colour == WHOLE { COLOURS[at % COLOURS.len()] } else { colour };
            part.draw(svg, &Spot { left, top: top - HEIGHT, scale, whole, colour });
            left += part.instructions as f64 * scale;
        }
    }

    fn depth(&self) -> u32 {
        1 + self.parts.iter().map(Self::depth).max().unwrap_or(0)
    }

    fn sorted(&self) -> Vec<&Self> {
        let mut parts: Vec<_> = self.parts.iter().collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.instructions));
        parts
    }
}

/// Where and how a frame is drawn.
struct Spot {
    left: f64,
    top: f64,
    /// Width of an instruction.
    scale: f64,
    /// Instructions of the whole graph.
    whole: u64,
    colour: &'static str,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> Frame {
        let mut graph = Frame::default();
        for (path, instructions) in [(["host", "kvm"], 10), (["guest", "a<b>;c"], 60), (["host", "kvm"], 30)] {
            graph.add(&path.map(str::to_owned), instructions);
        }
        graph
    }

    #[test]
    fn parts_add_up_and_the_most_expensive_comes_first() {
        assert_eq!(graph().instructions(), 100);
        assert_eq!(graph().children(), [("guest", 60), ("host", 40)]);
        assert_eq!(graph().folded(), "guest;a<b>,c 60\nhost;kvm 40\n");
    }

    #[test]
    fn frames_are_as_wide_as_their_share() {
        let svg = graph().svg();
        assert!(
            svg.contains("<title>host: 40 instructions, 40.00 %</title><rect x=\"720.00\" y=\"18\" width=\"480.00\"")
        );
        assert!(svg.contains("a&lt;b&gt;;c") && svg.ends_with("</svg>\n"));
        assert!(Frame::default().svg().ends_with("</svg>\n"), "nothing was sampled");
    }
}
