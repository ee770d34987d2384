// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The figures as bars: a group an operation, each on a scale of its own (they span six orders of magnitude); and as curves.

use std::fmt::Write as _;

use super::{
    Host,
    report::{self, Report, grouped},
};

const WIDTH: u32 = 760;
const LEFT: u32 = 130;
/// Room for the longest bar; its number stands right of it.
const BAR: u32 = 500;
const BAR_HEIGHT: u32 = 14;
const GROUP_GAP: u32 = 16;
const TOP: u32 = 56;

const fn colour(host: Host) -> &'static str {
    match host {
        Host::Gzvm => "#0b6e4f",
        Host::GzvmProtected => "#7fb069",
        Host::KvmVhe => "#4f7cac",
        Host::KvmNvhe => "#8fb0d0",
        Host::KvmProtected => "#c0a24a",
        Host::Gzvm7 => "#2f8f9d",
        Host::Gzvm7Protected => "#8cc5cd",
        Host::Kvm7Vhe => "#8a7fb0",
        Host::Kvm7ProtectedVm => "#b07f9e",
    }
}

/// The drawing.
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for operation in report::operations() {
        let figures: Vec<_> =
            report.columns.iter().map(|column| (column.host, column.figure(operation).ok())).collect();
        let most = figures.iter().filter_map(|(_, figure)| Some(figure.as_ref()?.instructions)).max();
        let target = report::target(operation);
        let most = most.max(target).unwrap_or(1).max(1);
        let length = |count: u64| count as f64 / most as f64 * f64::from(BAR);
        let height = BAR_HEIGHT * u32::try_from(figures.len()).unwrap_or(0);
        text(&mut body, LEFT - 10, y + height / 2 + 4, "end", operation);
        for (index, (host, figure)) in figures.iter().enumerate() {
            let top = y + BAR_HEIGHT * u32::try_from(index).unwrap_or(0);
            let Some(figure) = figure else {
                text(&mut body, LEFT + 6, top + 11, "start", "failed");
                continue;
            };
            let bar = length(figure.instructions);
            _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{top}" width="{bar:.1}" height="{}" fill="{}"/>"#,
                BAR_HEIGHT - 2,
                colour(*host)
            );
            _ = writeln!(
                body,
                r#"<text x="{:.1}" y="{}" font-size="11">{}</text>"#,
                f64::from(LEFT) + bar + 5.0,
                top + 10,
                grouped(figure.instructions)
            );
        }
        if let Some(target) = target {
            let x = f64::from(LEFT) + length(target);
            _ = writeln!(
                body,
                r##"<line x1="{x:.1}" y1="{}" x2="{x:.1}" y2="{}" stroke="#c1121f" stroke-dasharray="3 2"/>"##,
                y - 3,
                y + height + 1
            );
        }
        y += height + GROUP_GAP;
    }
    let mut legend = String::new();
    let mut x = LEFT;
    for column in &report.columns {
        let name = column.host.name();
        _ = writeln!(
            legend,
            r#"<rect x="{x}" y="32" width="12" height="10" fill="{}"/>"#,
            colour(column.host)
        );
        text(&mut legend, x + 17, 41, "start", name);
        x += 45 + 7 * u32::try_from(name.len()).unwrap_or(0);
    }
    _ = writeln!(
        legend,
        r##"<line x1="{x}" y1="30" x2="{x}" y2="44" stroke="#c1121f" stroke-dasharray="3 2"/>"##
    );
    text(&mut legend, x + 8, 41, "start", "target");
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="{WIDTH}" height="{y}" fill="#fff"/>
<text x="{LEFT}" y="20" font-size="14">Instructions per operation, plain VM; shorter is better; each operation on its own scale</text>
{legend}{body}</svg>
"##
    )
}

fn text(to: &mut String, x: u32, y: u32, anchor: &str, content: &str) {
    _ = writeln!(to, r#"<text x="{x}" y="{y}" text-anchor="{anchor}">{content}</text>"#);
}

/// Curves over the same numbers.
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// What the curves' points are of, each ten or so times the one before.
    pub numbers: Vec<u64>,
    /// A name and a point for each number.
    pub lines: Vec<(String, Vec<u64>)>,
}

/// Panels below one another.
pub struct Curves(pub Vec<Panel>);

const PANEL: u32 = 190;
const CURVES: u32 = 120;
const COLOURS: [&str; 3] = ["#0b6e4f", "#4f7cac", "#c0a24a"];

impl Curves {
    /// The drawing.
    pub fn svg(&self) -> String {
        let mut body = String::new();
        for (panel, top) in self.0.iter().zip((0..).step_by(PANEL as usize)) {
            panel.draw(&mut body, top);
        }
        let height = PANEL * u32::try_from(self.0.len()).unwrap_or(0) + 10;
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
{body}</svg>
"##
        )
    }
}

impl Panel {
    fn draw(&self, body: &mut String, top: u32) {
        text(body, LEFT, top + 20, "start", &self.title);
        let most = self.lines.iter().flat_map(|(_, points)| points).copied().max().unwrap_or(1).max(1);
        let steps = u32::try_from(self.numbers.len().saturating_sub(1)).unwrap_or(1).max(1);
        let floor = top + 36 + CURVES;
        let x = |index: usize| LEFT + BAR / steps * u32::try_from(index).unwrap_or(0);
        let y = |count: u64| f64::from(floor) - count as f64 / most as f64 * f64::from(CURVES);
        for (count, at) in [(0, floor + 4), (most, top + 40)] {
            text(body, LEFT - 8, at, "end", &grouped(count));
        }
        _ = writeln!(
            body,
            r##"<path d="M{LEFT} {} V{floor} H{}" fill="none" stroke="#999"/>"##,
            top + 36,
            LEFT + BAR
        );
        for (index, number) in self.numbers.iter().enumerate() {
            text(body, x(index), floor + 16, "middle", &grouped(*number));
        }
        for ((name, points), colour) in self.lines.iter().zip(COLOURS) {
            let place = |(index, count): (usize, &u64)| format!("{},{:.1}", x(index), y(*count));
            let places: Vec<_> = points.iter().enumerate().map(place).collect();
            _ = writeln!(
                body,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
                places.join(" ")
            );
            if let Some(last) = points.last() {
                _ = writeln!(
                    body,
                    r#"<text x="{}" y="{:.1}" fill="{colour}">{name}</text>"#,
                    LEFT + BAR + 8,
                    y(*last) + 4.0
                );
            }
        }
    }
}
