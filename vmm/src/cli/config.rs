// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gz run --config FILE`: options from a TOML file, and the way back.
//!
//! A key is the name of an option. It becomes that option on the command line, so names, values, defaults and what goes
//! with what are defined once. What is on the command line itself replaces the file's key, lists included.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, Error, FromArgMatches};
use toml::{Table, Value};

use super::Cli;

/// Options that are about the command, not the VM: no keys.
const NO_KEYS: [&str; 4] = ["config", "dry-run", "json", "help"];

/// The command line, with the file that it names.
///
/// # Errors
/// Wrong options or keys, or a file that can't be read. Help and version are such errors, too: see clap.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Cli, ArgMatches), Error> {
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    let mut command = Cli::command();
    command.build();
    // Only to find the file. What is wrong, or still missing, is told below.
    let first = command.clone().ignore_errors(true).try_get_matches_from(&arguments);
    if let Ok(first) = &first
        && let Some(("run", given)) = first.subcommand()
        && let Ok(Some(path)) = given.try_get_one::<PathBuf>("config")
        && let Some(run) = command.find_subcommand("run")
        && let Some(at) = arguments.iter().position(|argument| argument == "run")
    {
        let options = options(path, run, given)
            .map_err(|message| Error::raw(ErrorKind::InvalidValue, message + "\n").with_cmd(run))?;
        arguments.splice(at + 1..at + 1, options);
    }
    let matches = command.try_get_matches_from_mut(&arguments)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    if let super::Command::Run(options) = &cli.command
        && let Some(why) = options.devices.conflict()
    {
        return Err(Error::raw(ErrorKind::ArgumentConflict, format!("{why}\n")).with_cmd(&command));
    }
    Ok((cli, matches))
}

/// The file's keys as options, but for those that are `given` already.
fn options(path: &Path, run: &Command, given: &ArgMatches) -> Result<Vec<OsString>, String> {
    let place = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("--config {place}: {error}"))?;
    let mut table: Table = text.parse().map_err(|error| format!("--config {place}: {error}"))?;
    for option in run.get_arguments() {
        if given.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine) {
            name(option).filter(|name| !NO_KEYS.contains(name)).map(|name| table.remove(name));
        }
    }
    let mut options = Vec::new();
    to_options(table, run, &mut options).map_err(|problem| format!("--config {place}: {problem}"))?;
    Ok(options)
}

/// Adds all keys to `options`.
fn to_options(table: Table, run: &Command, options: &mut Vec<OsString>) -> Result<(), String> {
    for (key, value) in table {
        let option = run.get_arguments().find(|option| name(option) == Some(&key));
        let option = option
            .filter(|_| !NO_KEYS.contains(&key.as_str()))
            .ok_or_else(|| format!("unknown key `{key}`; keys are the names of `gz run`'s options"))?;
        add(option, &key, value, options).map_err(|problem| format!("`{key}` {problem}"))?;
    }
    Ok(())
}

/// Adds one key to `options`.
fn add(option: &Arg, key: &str, value: Value, options: &mut Vec<OsString>) -> Result<(), &'static str> {
    let is_list = matches!(option.get_action(), ArgAction::Append);
    match value {
        Value::Boolean(on) if is_flag(option) => {
            if on {
                options.push(format!("--{key}").into());
            }
        }
        _ if is_flag(option) => return Err("is true or false"),
        Value::String(text) => options.push(format!("--{key}={text}").into()),
        Value::Integer(number) => options.push(format!("--{key}={number}").into()),
        Value::Array(values) if is_list => {
            for value in values {
                add(option, key, value, options)?;
            }
        }
        Value::Array(_) => return Err("has one value, not a list"),
        _ => return Err("is a string or a whole number"),
    }
    Ok(())
}

/// What `gz run` came to, as the file that says the same; defaults included.
pub fn resolved(matches: &ArgMatches) -> Table {
    let mut command = Cli::command();
    command.build();
    let (Some(("run", given)), Some(run)) = (matches.subcommand(), command.find_subcommand("run")) else {
        return Table::new();
    };
    let keys = |wanted: &dyn Fn(ValueSource) -> bool| -> Table {
        let options = run
            .get_arguments()
            .filter(|option| given.value_source(option.get_id().as_str()).is_some_and(wanted));
        options.filter_map(|option| Some((name(option)?.to_owned(), key(option, given)?))).collect()
    };
    let mut table = keys(&|source| source != ValueSource::DefaultValue);
    // The default of an option that goes with another one only says something where that one is.
    for (name, value) in keys(&|source| source == ValueSource::DefaultValue) {
        let mut more = table.clone();
        more.insert(name, value);
        let mut arguments = vec!["gz".into(), "run".into()];
        if to_options(more.clone(), run, &mut arguments).is_ok()
            && command.clone().try_get_matches_from(arguments).is_ok()
        {
            table = more;
        }
    }
    table
}

/// What an option that is given says as a key.
fn key(option: &Arg, given: &ArgMatches) -> Option<Value> {
    name(option).filter(|name| !NO_KEYS.contains(name))?;
    if is_flag(option) {
        return given.get_flag(option.get_id().as_str()).then_some(true.into());
    }
    let raw = given.get_raw(option.get_id().as_str())?;
    let mut values = raw.map(|raw| value(option, &raw.to_string_lossy()));
    if matches!(option.get_action(), ArgAction::Append) {
        Some(Value::Array(values.collect()))
    } else {
        values.next()
    }
}

/// A number where the option is one, so that a key's type does not depend on its value.
fn value(option: &Arg, raw: &str) -> Value {
    let kind = option.get_value_parser().type_id();
    let numbers = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
    let is_number = numbers.iter().any(|number| kind == *number);
    match raw.parse() {
        Ok(number) if is_number => Value::Integer(number),
        _ => raw.into(),
    }
}

fn name(option: &Arg) -> Option<&str> {
    option.get_long()
}

fn is_flag(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::SetTrue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, MemSize, RunOptions};

    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("gz-config-{}-{name}.toml", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }

        fn run(&self, more: &[&str]) -> Result<(RunOptions, Table), Error> {
            let arguments = ["gz", "run", "--config", self.0.to_str().unwrap()];
            let (cli, matches) = parse(arguments.iter().chain(more).map(OsString::from))?;
            let Command::Run(options) = cli.command else { panic!("{cli:?}") };
            Ok((*options, resolved(&matches)))
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    const FULL: &str = r#"
        kernel = "Image"
        disk = ["a.img", "b.img,ro"]
        cpus = 4
        mem = "1G"
        cmdline = "--root=/dev/vda"
        strict-mmio = true
        protected = false
        features = ["sve"]
        seed = 7
    "#;

    #[test]
    fn keys_are_options() {
        let file = File::new("keys", FULL);
        let (options, _) = file.run(&[]).unwrap();
        assert_eq!(options.boot.kernel.as_deref(), Some(Path::new("Image")));
        assert_eq!((options.machine.cpus, options.machine.mem), (4, MemSize(1 << 30)));
        assert_eq!((options.devices.disks.len(), options.devices.disks[1].read_only), (2, true));
        assert_eq!(options.boot.cmdline, "--root=/dev/vda");
        assert!(options.machine.strict_mmio && !options.boot.protected);
        assert_eq!((options.machine.features.len(), options.machine.seed), (1, Some(7)));
    }

    #[test]
    fn options_replace_keys() {
        let file = File::new("replace", FULL);
        let (options, _) = file.run(&["--cpus", "2", "--disk", "c.img"]).unwrap();
        assert_eq!((options.machine.cpus, options.machine.mem), (2, MemSize(1 << 30)));
        assert_eq!(
            options.devices.disks.iter().map(|disk| disk.path.to_str()).collect::<Vec<_>>(),
            [Some("c.img")]
        );
    }

    #[test]
    fn what_it_came_to_is_a_file_that_says_the_same() {
        let (options, table) = File::new("forth", FULL).run(&["--mem", "64M"]).unwrap();
        assert_eq!((table["mem"].as_str(), table["cpus"].as_integer()), (Some("64M"), Some(4)));
        assert_eq!(table["on-reset"].as_str(), Some("exit"), "a default");
        assert!(!table.contains_key("protected") && !table.contains_key("config"));
        let (again, _) = File::new("back", &table.to_string()).run(&[]).unwrap();
        let bare = |mut options: RunOptions| {
            options.manage.config = None;
            options
        };
        assert_eq!(bare(again), bare(options));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("kernel = 'k'\nkernl = 1", "unknown key `kernl`"),
            ("kernel = 'k'\nconfig = 'x'", "unknown key `config`"),
            ("kernel = 'k'\njson = true", "unknown key `json`"),
            ("kernel = 'k'\nhelp = true", "unknown key `help`"),
            ("kernel = ['k']", "`kernel` has one value"),
            ("kernel = 'k'\nprotected = 'yes'", "`protected` is true or false"),
            ("kernel = 'k'\nmem = 1.5", "`mem` is a string or a whole number"),
            ("kernel = 'k'\ndisk = [true]", "`disk` is a string"),
            ("kernel = 'k'\n[machine]\ncpus = 1", "unknown key `machine`"),
            ("kernel = ", "--config "),
            ("kernel = 'k'\ncpus = 0", "invalid value '0' for '--cpus"),
            ("kernel = 'k'\nfirmware = 'f'", "cannot be used with"),
            ("cpus = 1", "required"),
            ("kernel = 'k'\nfs = ['a=b']\nballoon = '1M'", "not get them back"),
            ("kernel = 'k'\nballoon = '1M'\nvhost-user = ['rng,socket=b']", "not get them back"),
        ] {
            let error = File::new("wrong", text).run(&[]).unwrap_err();
            assert!(error.to_string().contains(message), "{text}: {error}");
            assert_eq!(error.exit_code(), 2, "{text}");
        }
        let error = parse(["gz", "run", "--config", "/none/vm.toml"].map(OsString::from)).unwrap_err();
        assert!(error.to_string().contains("--config /none/vm.toml: No such file"), "{error}");
    }

    #[test]
    fn others_have_no_file() {
        assert!(parse(["gz", "public-key", "--config", "x"].map(OsString::from)).is_err());
        assert!(parse(["gz", "public-key", "run"].map(OsString::from)).is_ok());
        assert_eq!(
            parse(["gz", "run", "--help"].map(OsString::from)).unwrap_err().kind(),
            ErrorKind::DisplayHelp
        );
    }
}
