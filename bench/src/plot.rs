//! Curves over a size, as SVG.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use plotters::prelude::*;

/// A picture's size in pixels.
const SIZE: (u32, u32) = (760, 380);
const COLORS: [RGBColor; 4] =
    [RGBColor(0x1f, 0x6f, 0xb2), RGBColor(0xd9, 0x5f, 0x0e), RGBColor(0x2b, 0x8a, 0x57), RGBColor(0x7a, 0x4f, 0xa3)];

/// A curve: its name, and its points.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A picture with some curves; both axes grow by factors, since sizes and costs do.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    /// What its file is called, without `.svg`.
    pub(crate) file: &'static str,
    pub(crate) title: String,
    pub(crate) across: &'static str,
    pub(crate) up: &'static str,
    pub(crate) curves: Vec<Curve>,
}

impl Plot {
    /// Draws it into a directory. Nothing is drawn where there are no two points of a curve.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn draw(&self, directory: &Path) -> anyhow::Result<Option<String>> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points).filter(|(x, y)| *x > 0.0 && *y > 0.0);
        let range = |of: fn(&(f64, f64)) -> f64| {
            let (low, high) = points().map(of).fold((f64::MAX, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
            low / 1.3..high * 1.3
        };
        if !self.curves.iter().any(|curve| curve.points.len() > 1) {
            return Ok(None);
        }
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let name = format!("{}.svg", self.file);
        let path = directory.join(&name);
        let root = SVGBackend::new(&path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(range(|point| point.0).log_scale(), range(|point| point.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(self.across)
            .y_desc(self.up)
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|y| number(*y))
            .light_line_style(WHITE.mix(0.0))
            .draw()?;
        for (curve, color) in self.curves.iter().zip(COLORS.iter().cycle()) {
            let style = color.stroke_width(2);
            chart
                .draw_series(LineSeries::new(curve.points.iter().copied(), style))?
                .label(&curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            chart.draw_series(curve.points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .draw()?;
        root.present()?;
        drop(chart);
        Ok(Some(name))
    }
}

/// `0.02`, `1.5`, `1000`.
fn number(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}") } else { format!("{}", (value * 1000.0).round() / 1000.0) }
}
