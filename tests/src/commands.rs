//! What the documentation's pages tell a reader to run. Pure: text in, blocks out.

/// A text without its fenced blocks and without `code` in its lines.
pub fn outside_of_code(text: &str) -> String {
    let mut outside = String::new();
    let mut is_fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if !is_fenced {
            outside.extend(line.split('`').step_by(2));
            outside.push('\n');
        }
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_code_are_no_links() {
        let text = "a [b](c)\n```sh\n[d](e)\n```\n`[f](g)` and [h](i)\n";
        assert_eq!(outside_of_code(text), "a [b](c)\n and [h](i)\n");
    }
}
