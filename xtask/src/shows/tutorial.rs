//! Show: `docs/tutorial.md`, run as a reader would: each `sh` block by one bash in a folder of its own, in order; a `text` block
//! after it says which lines it has to print, in this order, with `[..]` for anything. What only looks is run again until it
//! has the answer, as a reader would; nothing else is.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::daemon;
use crate::shell::{self, TempDir};

/// How long one block may take, and how long its answer may.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL: Duration = Duration::from_millis(300);
/// What starts a line that only looks.
const LOOKS: [&str; 5] = [
    "volund status",
    "volund why",
    "volund plan",
    "volund quarantine list",
    "curl ",
];

pub(super) fn round(_seed: u64) -> Result<String> {
    let text = fs::read_to_string(shell::root().join("docs/tutorial.md"))?;
    let blocks = parse(&text)?;
    let mut bash = Bash::start(&daemon::build()?)?;
    for block in &blocks {
        bash.run(block)
            .with_context(|| format!("docs/tutorial.md:{}", block.line))?;
    }
    let expected: usize = blocks.iter().map(|block| block.expected.len()).sum();
    Ok(format!(
        "{} blocks, {expected} lines of their output as shown",
        blocks.len()
    ))
}

/// What is run in one go.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// Where it starts, for messages.
    line: usize,
    script: String,
    expected: Vec<String>,
}

/// The `sh` blocks, each with the `text` block that comes next, if that is before the next `sh` block.
fn parse(text: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else {
            continue;
        };
        let body: Vec<&str> = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| *line != "```")
            .collect();
        match kind {
            "sh" => blocks.push(Block {
                line: number + 1,
                script: body.join("\n"),
                expected: Vec::new(),
            }),
            "text" => {
                let last = blocks.last_mut().filter(|block| block.expected.is_empty());
                let last = last.with_context(|| format!("line {}: output of what?", number + 1))?;
                let lines = body.iter().filter(|line| !line.trim().is_empty());
                last.expected = lines.map(|line| (*line).to_owned()).collect();
            }
            // For readers only.
            "console" | "toml" => {}
            other => bail!("line {}: what is a block of {other:?}?", number + 1),
        }
    }
    Ok(blocks)
}

impl Block {
    /// The lines that only look which it ends with: what is run again.
    fn looks(&self) -> String {
        let lines: Vec<&str> = self.script.lines().collect();
        let is_look = |line: &&&str| LOOKS.iter().any(|look| line.starts_with(look));
        let count = lines.iter().rev().take_while(is_look).count();
        lines[lines.len() - count..].join("\n")
    }

    /// The first expected line that `output` does not have where it should.
    fn missing(&self, output: &str) -> Option<&str> {
        let mut lines = output.lines();
        let mut expected = self.expected.iter();
        let missing = expected.find(|pattern| !lines.any(|line| matches(pattern, line)));
        missing.map(String::as_str)
    }
}

/// Whether the line is as the pattern says, in which `[..]` is anything.
fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.trim_end().split("[..]");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.trim_end().strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// One shell for all blocks, so that folders, variables and jobs stay; ended with its daemon when dropped.
struct Bash {
    child: Child,
    input: ChildStdin,
    folder: TempDir,
    count: u32,
}

impl Bash {
    /// In a new folder on a real disk, with the programs that the reader has just built on its PATH.
    fn start(volund: &Path) -> Result<Bash> {
        let folder = TempDir::below(&shell::root().join("target"), "tutorial")?;
        let bin = folder.path().join("bin");
        fs::create_dir(&bin)?;
        std::os::unix::fs::symlink(volund, bin.join("volund"))?;
        let client = shell::root().join("target/debug/examples/bench_client");
        std::os::unix::fs::symlink(client, bin.join("bench_client"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut child = shell::command("bash")
            .current_dir(folder.path())
            .env("PATH", format!("{}:{path}", bin.display()))
            // Others may have the port that the reader has for himself.
            .env("VOLUND_HTTP", port.to_string())
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start bash")?;
        let input = child.stdin.take().context("the pipe was asked for")?;
        Ok(Bash {
            child,
            input,
            folder,
            count: 0,
        })
    }

    /// Runs a block and compares; what looks is run again until it is as expected.
    fn run(&mut self, block: &Block) -> Result<()> {
        let started = Instant::now();
        let mut output = self.execute(&block.script)?;
        let again = block.looks();
        while let Some(missing) = block.missing(&output) {
            ensure!(
                !again.is_empty() && started.elapsed() < PATIENCE,
                "no line {missing:?} in\n{output}"
            );
            std::thread::sleep(POLL);
            output = self.execute(&again)?;
        }
        Ok(())
    }

    /// Runs lines and gives what they print. A line that fails is an error.
    fn execute(&mut self, script: &str) -> Result<String> {
        self.count += 1;
        let file = |name: &str| self.folder.path().join(format!("{name}.{}", self.count));
        let (output, failed, done) = (file("output"), file("failed"), file("done"));
        writeln!(
            self.input,
            "trap 'echo \"line {{$BASH_COMMAND}} ended with $?\" >> \"{failed}\"' ERR\n\
             {{\n{script}\n}} > \"{output}\" 2>&1 < /dev/null\n\
             trap - ERR\n: > \"{done}\"",
            failed = failed.display(),
            output = output.display(),
            done = done.display()
        )?;
        self.wait_for(&done, script)?;
        let said = fs::read_to_string(&output)?;
        if let Ok(failed) = fs::read_to_string(&failed) {
            bail!("{failed}{said}");
        }
        Ok(said)
    }

    fn wait_for(&mut self, done: &Path, script: &str) -> Result<()> {
        let started = Instant::now();
        while !done.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the shell ended with {status} at\n{script}");
            }
            ensure!(
                started.elapsed() < PATIENCE,
                "no end after {} s of\n{script}",
                PATIENCE.as_secs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Bash {
    fn drop(&mut self) {
        // The daemon first, if a block that failed has left it.
        let _gone = writeln!(self.input, "kill $(jobs -p) && wait\nexit");
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_a_whole_line() {
        assert!(matches("a [..] c", "a b b c"));
        assert!(matches("[..]x[..]", "axb") && matches("plain", "plain  "));
        for (pattern, line) in [("a [..] c", "a b d"), ("plain", "plainer"), ("[..]x", "y")] {
            assert!(!matches(pattern, line), "{pattern} {line}");
        }
    }

    #[test]
    fn output_belongs_to_the_block_before_it() {
        let text = "a\n```sh\nvolund status\n```\nb\n```text\nx\n\ny\n```\n```toml\nno\n```\n";
        let blocks = parse(text).unwrap();
        let [block] = &blocks[..] else {
            panic!("{blocks:?}")
        };
        assert_eq!(
            (block.line, block.expected.as_slice()),
            (2, &["x".to_owned(), "y".to_owned()][..])
        );
        assert_eq!(block.missing("x\nz\ny\n"), None);
        assert_eq!(block.missing("y\nx\n"), Some("y"));
        assert!(parse("```text\nx\n```\n").is_err());
    }

    #[test]
    fn only_what_looks_is_run_again() {
        let text = "```sh\nsed x\nvolund status\n```\n```sh\nvolund inject\n```\n";
        let blocks = parse(text).unwrap();
        let again: Vec<String> = blocks.iter().map(Block::looks).collect();
        assert_eq!(again, ["volund status", ""]);
    }
}
