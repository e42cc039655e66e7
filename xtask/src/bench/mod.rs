//! `cargo xtask bench`: volund against what users have today, on the same files, in interleaved rounds.
//!
//! `cases` says what is measured; `load` reads a job of `fio-jobs/bench/`; `programs` are those that take part; `store` has
//! the files they work on; `contenders` are the processes; `rounds` plays them, `sample` is one measurement; `stats` has
//! medians, paired ratios with their interval and the judgement of a ratio; `report` prints, `plot` draws; `shows` judges; `guard`
//! compares with the previous commit.
//! Apart from them: `scale`, what many volumes cost; `guest`, ublk inside a guest.

mod cases;
mod contenders;
mod guard;
pub(crate) mod guest;
mod load;
mod plot;
mod programs;
mod report;
mod rounds;
mod sample;
pub(crate) mod scale;
pub(crate) mod shows;
pub(crate) mod stats;
mod store;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use self::cases::{CASES, Case, Entry};
use self::programs::Programs;
pub(crate) use self::programs::{Build, build};
use self::report::Outcome;
use self::rounds::{Between, Plan};
use self::store::Store;
use crate::shell;

const USAGE: &str = "usage: cargo xtask bench [CASE...] [options]; without a case, all of them
       cargo xtask bench idle
       cargo xtask bench --guard [--against REV] [--counts]
       cargo xtask bench scale [--volumes 1,10,100,1000] [--mirrored]: what many volumes cost
       cargo xtask bench guest [--part loop|mirror] [--kernel NAME] [--rounds N] [--turn MILLISECONDS]
                               [--volund PROGRAM] [--other PROGRAM]

  --list             the cases
  --prepare          only build, install and write the files that the cases need
  --no-build         take the release build that is there
  --rounds N         interleaved rounds [15]
  --seconds S        of each measurement [1]
  --warm S           of load before each measurement, or more where a case needs it [0.3]
  --seed N           of the order and of the blocks [1]
  --only A,B         these contenders only: volund, qemu-7.2, qemu-10, fio
  --volund-args ARGS further arguments of `volund run`, split at spaces
  --volund PATH      another build of volund
  --no-syscalls      without the further round that counts system calls
  --plot             the ratios as a picture, target/bench/NAME.svg
  --name NAME        the results are target/bench/NAME.json [the case, or `bench`]
";

/// What a person asked for.
#[derive(Debug)]
struct Options {
    cases: Vec<&'static Case>,
    plan: Plan,
    only: Vec<String>,
    volund_args: Vec<String>,
    volund: Option<PathBuf>,
    prepare: bool,
    plot: bool,
    name: Option<String>,
    build: Build,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cases: Vec::new(),
            plan: Plan {
                rounds: 15,
                seconds: 1.0,
                warm: 0.3,
                seed: 1,
                between: Between::Nothing,
                syscalls: true,
            },
            only: Vec::new(),
            volund_args: Vec::new(),
            volund: None,
            prepare: false,
            plot: false,
            name: None,
            build: Build::Release,
        }
    }
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    match args.first().map(String::as_str) {
        Some("idle") => return crate::shows::bench_idle(args),
        Some("--guard") => return guard::run(&args[1..]),
        Some("scale") => return scale::run(&args[1..]),
        Some("guest") => return guest::run(&args[1..]),
        Some("--list") => {
            for case in CASES {
                println!("{:22} {}", case.name, case.about);
            }
            return Ok(());
        }
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            return Ok(());
        }
        _ => {}
    }
    let options = parse(args)?;
    let bench = Bench::new(&options)?;
    for case in &options.cases {
        case.prepare(&bench.store)?;
    }
    if options.prepare {
        return Ok(());
    }
    let mut outcomes = Vec::new();
    for case in &options.cases {
        let outcome = bench.play(case, &options)?;
        print!("{}", outcome.text());
        outcomes.push(outcome);
    }
    let name = match (&options.name, &options.cases[..]) {
        (Some(name), _) => name,
        (None, [case]) => case.name,
        (None, _) => "bench",
    };
    let json = report::write_json(name, &bench.programs, &options.plan, &outcomes)?;
    println!("\nall rounds: {}", json.display());
    if options.plot {
        let picture = json.with_extension("svg");
        fs::write(&picture, plot::svg(&outcomes))?;
        println!("picture: {}", picture.display());
    }
    Ok(())
}

/// All that cases are played with.
#[derive(Debug)]
struct Bench {
    programs: Programs,
    store: Store,
}

impl Bench {
    fn new(options: &Options) -> Result<Bench> {
        let mut programs = Programs::get(options.build)?;
        if let Some(volund) = &options.volund {
            programs.volund.clone_from(volund);
        }
        let folder = std::env::var_os("VOLUND_BENCH_STORE").map(PathBuf::from);
        let store = Store {
            folder: folder.unwrap_or_else(|| shell::root().join("target/bench/store")),
            volund: programs.volund.clone(),
            fio: programs.fio.clone(),
        };
        Ok(Bench { programs, store })
    }

    fn entry<'a>(&'a self, options: &'a Options, only: &'a [String]) -> Entry<'a> {
        Entry {
            programs: &self.programs,
            store: &self.store,
            volund_args: &options.volund_args,
            rounds: options.plan.rounds,
            only,
        }
    }

    fn play(&self, case: &Case, options: &Options) -> Result<Outcome> {
        let setup = case
            .start(&self.entry(options, &options.only))
            .with_context(|| format!("{} cannot start", case.name))?;
        let plan = Plan {
            between: setup.between,
            warm: options.plan.warm.max(case.warm),
            ..options.plan
        };
        let series = rounds::interleave(&self.programs, &setup.contenders, &setup.load, &plan)
            .with_context(|| format!("in {}", case.name))?;
        Ok(Outcome::new((case.name, case.about), setup.load, series))
    }
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--no-build" => options.build = Build::Existing,
            "--plot" => options.plot = true,
            "--prepare" => options.prepare = true,
            "--no-syscalls" => options.plan.syscalls = false,
            name if !name.starts_with('-') => options.cases.push(cases::named(name)?),
            option => {
                let value = rest
                    .next()
                    .with_context(|| format!("{option} takes a value\n\n{USAGE}"))?;
                take(&mut options, option, value)?;
            }
        }
    }
    if options.cases.is_empty() {
        options.cases = CASES.iter().collect();
    }
    Ok(options)
}

/// One option that has a value.
fn take(options: &mut Options, option: &str, value: &str) -> Result<()> {
    let words = |separator: char| {
        value
            .split(separator)
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    match option {
        "--rounds" => options.plan.rounds = value.parse()?,
        "--seconds" => options.plan.seconds = value.parse()?,
        "--warm" => options.plan.warm = value.parse()?,
        "--seed" => options.plan.seed = value.parse()?,
        "--only" => options.only = words(','),
        "--volund-args" => options.volund_args = words(' '),
        "--volund" => options.volund = Some(PathBuf::from(value)),
        "--name" => options.name = Some(value.to_owned()),
        other => bail!("unknown option {other:?}\n\n{USAGE}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options> {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(&args)
    }

    #[test]
    fn cases_and_options_may_stand_in_any_order() {
        let options = parsed("randread-d1 --rounds 3 null --only volund,fio").unwrap();
        let names: Vec<&str> = options.cases.iter().map(|case| case.name).collect();
        assert_eq!(names, ["randread-d1", "null"]);
        assert_eq!((options.plan.rounds, options.only.len()), (3, 2));
        assert_eq!(parsed("--seed 2").unwrap().cases.len(), CASES.len());
        let wrong = parsed("randread").unwrap_err();
        assert!(wrong.to_string().contains("randread-d32"));
        assert!(parsed("--rounds").is_err());
    }

    #[test]
    fn every_case_has_a_job() {
        for case in CASES {
            assert!(case.load(1 << 20).is_ok(), "{}", case.name);
        }
    }
}
