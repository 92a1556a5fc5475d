//! Running a program and looking at what came of it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// A program that has ended.
#[derive(Debug)]
pub struct Done {
    command: String,
    /// Exit code; `None` when a signal ended the program.
    pub code: Option<i32>,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub stderr: String,
}

impl Done {
    /// What the program printed.
    ///
    /// # Panics
    ///
    /// When it did not succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == Some(0), "failed, but should not:\n{self}");
        self.stdout
    }

    /// What the program complained about.
    ///
    /// # Panics
    ///
    /// When it succeeded.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(self.code != Some(0), "succeeded, but should not:\n{self}");
        self.stderr
    }

    /// Holds that the program failed and that its complaint contains every one of these texts.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn fails_with(self, texts: &[&str]) {
        let shown = self.to_string();
        let complaint = self.fails();
        for text in texts {
            assert!(complaint.contains(text), "the complaint lacks `{text}`:\n{shown}");
        }
    }

    /// What the program printed, as JSON.
    ///
    /// # Panics
    ///
    /// When it failed or printed something else.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let shown = self.to_string();
        serde_json::from_str(&self.ok()).unwrap_or_else(|e| panic!("not JSON ({e}):\n{shown}"))
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "$ {command}\nexit code {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// A program with these arguments.
pub fn command(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs a program to its end with this text as its standard input.
///
/// # Panics
///
/// When it cannot be started or does not end within [`PATIENCE`].
#[track_caller]
pub(crate) fn run(mut command: Command, stdin: &str) -> Done {
    let shown = show(&command);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|e| panic!("cannot run {shown}: {e}"));
    let mut input = child.stdin.take().expect("the input was piped");
    let text = stdin.to_owned();
    // The program may end without reading its input, which is its own affair.
    let writer = std::thread::spawn(move || drop(input.write_all(text.as_bytes())));
    let stdout = collect(child.stdout.take().expect("the output was piped"));
    let stderr = collect(child.stderr.take().expect("the output was piped"));
    let status = wait(&mut child, PATIENCE);
    if status.is_none() {
        drop(child.kill());
        drop(child.wait());
    }
    writer.join().expect("the writer does not panic");
    let join = |reader: JoinHandle<String>| reader.join().expect("the reader does not panic");
    let done = Done {
        command: shown,
        code: status.and_then(|s| s.code()),
        stdout: join(stdout),
        stderr: join(stderr),
    };
    assert!(status.is_some(), "did not end within {PATIENCE:?}:\n{done}");
    done
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn collect(mut pipe: impl std::io::Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for the end of a child; `None` when it takes longer.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program that runs beside the test and is killed with it; its output is read line by line.
#[derive(Debug)]
pub struct Background {
    child: Child,
    lines: Receiver<String>,
}

impl Background {
    /// Starts a program; both its outputs become lines.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("cannot run {}: {e}", show(&command)));
        let (sender, lines) = channel();
        let errors = sender.clone();
        let stdout = BufReader::new(child.stdout.take().expect("the output was piped"));
        let stderr = BufReader::new(child.stderr.take().expect("the output was piped"));
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|l| errors.send(l)));
        Self { child, lines }
    }

    /// The next line that contains this text.
    ///
    /// # Panics
    ///
    /// When the output ends or [`PATIENCE`] runs out before.
    #[track_caller]
    pub fn line_with(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(e) => panic!("no line with `{text}` ({e}), only:\n{}", seen.join("\n")),
            }
        }
    }

    /// Types a text.
    ///
    /// # Panics
    ///
    /// When the program reads no more.
    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        let input = self.child.stdin.as_mut().expect("the input is open");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("the program reads its input");
    }

    /// Closes the input.
    pub fn end_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits for the program's end and gives its exit code.
    ///
    /// # Panics
    ///
    /// When [`PATIENCE`] runs out.
    #[track_caller]
    pub fn end(mut self) -> Option<i32> {
        wait(&mut self.child, PATIENCE).expect("the program ends").code()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
