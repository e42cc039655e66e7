//! Tables for people: upper-case headers, two spaces between columns, no borders.

use std::collections::BTreeMap;

/// Rows of cells under a header.
#[derive(Clone, Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Text after a row's last cell, as wide as it is: it widens no column. By the row's index.
    tails: BTreeMap<usize, String>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()],
            tails: BTreeMap::new(),
        }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// A row of `cells` and, after them, text that belongs to no column.
    pub(super) fn row_with(&mut self, cells: Vec<String>, tail: String) {
        self.tails.insert(self.rows.len(), tail);
        self.rows.push(cells);
    }

    /// The text, a line per row. A row with fewer cells than the others is fine.
    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths);
            let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
            let mut cells: Vec<String> = cells.collect();
            cells.extend(self.tails.get(&index).cloned());
            let line = cells.join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(vec!["long-name".to_owned(), "1GiB".to_owned()]);
        table.row(vec!["x".to_owned()]);
        table.row_with(vec!["y".to_owned()], "and so on".to_owned());
        assert_eq!(
            table.text(),
            "NAME       SIZE\nlong-name  1GiB\nx\ny          and so on\n"
        );
    }
}
