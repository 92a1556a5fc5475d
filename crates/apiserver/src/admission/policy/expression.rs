//! Compiled expressions of policies, and the scope they are evaluated in.

use std::collections::BTreeMap;

use sampan_api::cel::{Budget, CelValue, EvalError, Expression};
use serde_json::Value;

use super::rewrite::{identifier, rewrite};

/// What every expression of a policy may name.
const VARIABLES: &[&str] = &["object", "oldObject", "request", "params", "namespaceObject"];

/// An expression as it was written and as it is evaluated.
#[derive(Debug)]
pub(in crate::admission) struct Program {
    /// As its author wrote it, for messages.
    pub(super) text: String,
    expression: Expression,
    /// What it asks the authorizer.
    checks: Vec<Check>,
}

/// A question to the authorizer whose arguments are expressions.
#[derive(Debug)]
struct Check {
    identifier: String,
    calls: Vec<(String, Vec<Expression>)>,
}

/// A question to the authorizer: methods and their arguments, the last one asking for the answer.
pub(in crate::admission) type Calls = [(String, Vec<String>)];
/// Answers questions to the authorizer.
pub(in crate::admission) type Authorizer<'a> = &'a dyn Fn(&Calls) -> Result<Value, String>;

impl Program {
    /// Compiles an expression that may name the given variables of its policy.
    pub(in crate::admission) fn compile(text: &str, variables: &[String]) -> Result<Self, String> {
        let rewritten = rewrite(text);
        let variables: Vec<String> = variables.iter().map(|name| identifier(name)).collect();
        let mut known: Vec<&str> = VARIABLES.to_vec();
        known.extend(variables.iter().map(String::as_str));
        let compile = |text: &str, known: &[&str]| {
            Expression::compile(text, known).map_err(|error| format!("compilation failed: {error}"))
        };
        let mut checks = Vec::new();
        for chain in &rewritten.chains {
            let mut calls = Vec::new();
            for (method, arguments) in &chain.calls {
                let arguments = arguments.iter().map(|argument| compile(argument, &known));
                calls.push((method.clone(), arguments.collect::<Result<Vec<_>, String>>()?));
            }
            checks.push(Check { identifier: chain.identifier.clone(), calls });
        }
        known.extend(rewritten.chains.iter().map(|chain| chain.identifier.as_str()));
        let expression = compile(&rewritten.text, &known)?;
        Ok(Self { text: text.trim().to_owned(), expression, checks })
    }

    /// Whether a variable is named anywhere in the expression.
    fn names(&self, identifier: &str) -> bool {
        let mut arguments =
            self.checks.iter().flat_map(|check| &check.calls).flat_map(|(_, arguments)| arguments);
        self.expression.uses(identifier) || arguments.any(|argument| argument.uses(identifier))
    }
}

/// A named expression of a policy; later ones may name earlier ones.
#[derive(Debug)]
pub(in crate::admission) struct Variable {
    name: String,
    identifier: String,
    program: Result<Program, String>,
}

impl Variable {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn program(&self) -> &Result<Program, String> {
        &self.program
    }
}

/// Compiles the variables of a policy.
pub(super) fn read_variables(spec: &Value) -> Vec<Variable> {
    let mut names: Vec<String> = Vec::new();
    let mut variables = Vec::new();
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap_or_default().to_owned();
        let program = Program::compile(variable["expression"].as_str().unwrap_or_default(), &names);
        variables.push(Variable { identifier: identifier(&name), name: name.clone(), program });
        names.push(name);
    }
    variables
}

/// Names of the variables of a policy.
pub(super) fn names_of(variables: &[Variable]) -> Vec<String> {
    variables.iter().map(|variable| variable.name.clone()).collect()
}

/// What expressions see. Variables are computed when the first expression names them, once.
pub(in crate::admission) struct Scope<'a> {
    base: Vec<(&'static str, CelValue)>,
    variables: &'a [Variable],
    authorizer: Authorizer<'a>,
    computed: BTreeMap<usize, Result<CelValue, String>>,
    budget: Budget,
}

impl<'a> Scope<'a> {
    /// A scope over documents in the order of [`VARIABLES`].
    pub(in crate::admission) fn new(
        documents: [&Value; 5],
        authorizer: Authorizer<'a>,
        variables: &'a [Variable],
        budget: u64,
    ) -> Self {
        let base = VARIABLES.iter().copied().zip(documents.map(CelValue::from_json)).collect();
        Self { base, variables, authorizer, computed: BTreeMap::new(), budget: Budget::new(budget) }
    }

    /// The value of an expression, or in words why there is none.
    pub(super) fn evaluate(&mut self, program: &Program) -> Result<CelValue, String> {
        self.evaluate_below(program, self.variables.len())
    }

    /// The truth of an expression.
    pub(in crate::admission) fn holds(&mut self, program: &Program) -> Result<bool, String> {
        match self.evaluate(program)?.to_json() {
            Some(Value::Bool(truth)) => Ok(truth),
            _ => Err("expression does not result in a bool".to_owned()),
        }
    }

    /// The document an expression makes.
    pub(super) fn document(&mut self, program: &Program) -> Result<Value, String> {
        self.evaluate(program)?.to_json().ok_or_else(|| "expression does not result in a document".to_owned())
    }

    /// Evaluates with the variables before a place, so that no variable can name itself.
    fn evaluate_below(&mut self, program: &Program, place: usize) -> Result<CelValue, String> {
        let variables = self.variables;
        let named: Vec<usize> = (0..place).filter(|i| program.names(&variables[*i].identifier)).collect();
        for i in &named {
            self.compute(*i);
        }
        let mut known: Vec<(&str, &CelValue)> =
            self.base.iter().map(|(name, value)| (*name, value)).collect();
        let mut failed = None;
        for i in named {
            match self.computed.get(&i) {
                Some(Ok(value)) => known.push((variables[i].identifier.as_str(), value)),
                Some(Err(why)) => {
                    let name = &variables[i].name;
                    failed =
                        failed.or(Some(format!("composited variable \"{name}\" fails to evaluate: {why}")));
                }
                None => {}
            }
        }
        let mut answers = Vec::new();
        for check in &program.checks {
            match ask(check, self.authorizer, &known, &mut self.budget) {
                Ok(answer) => answers.push((check.identifier.as_str(), answer)),
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        known.extend(answers.iter().map(|(name, answer)| (*name, answer)));
        // A variable that has no value is no harm where it is not looked at (`has(x) && variables.y`).
        program.expression.evaluate(&known, &mut self.budget).map_err(|error| match error {
            EvalError::Value(why) => failed.unwrap_or(why),
            other => other.to_string(),
        })
    }

    fn compute(&mut self, place: usize) {
        if self.computed.contains_key(&place) {
            return;
        }
        let variables = self.variables;
        let value = match &variables[place].program {
            Ok(program) => self.evaluate_below(program, place),
            Err(why) => Err(why.clone()),
        };
        self.computed.insert(place, value);
    }
}

/// Puts a question to the authorizer.
fn ask(
    check: &Check,
    authorizer: Authorizer<'_>,
    known: &[(&str, &CelValue)],
    budget: &mut Budget,
) -> Result<CelValue, String> {
    let mut calls = Vec::new();
    for (method, arguments) in &check.calls {
        let mut texts = Vec::new();
        for argument in arguments {
            let value = argument.evaluate(known, budget).map_err(|error| error.to_string())?;
            let text = value.as_str().ok_or_else(|| format!("authorizer.{method}: no such overload"))?;
            texts.push(text.to_owned());
        }
        calls.push((method.clone(), texts));
    }
    authorizer(&calls).map(|answer| CelValue::from_json(&answer))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn evaluate(variables: Value, text: &str) -> Result<Value, String> {
        let variables = read_variables(&json!({"variables": variables}));
        let program = Program::compile(text, &names_of(&variables))?;
        let object = json!({"spec": {"replicas": 3, "labels": {"a/b": "c"}}});
        let none = Value::Null;
        let authorizer = |calls: &Calls| {
            let asked: Vec<String> = calls
                .iter()
                .map(|(method, arguments)| format!("{method}({})", arguments.join(",")))
                .collect();
            Ok(json!(asked.join(".")))
        };
        let documents = [&object, &none, &none, &none, &none];
        let mut scope = Scope::new(documents, &authorizer, &variables, Budget::PER_REQUEST);
        scope.document(&program)
    }

    #[test]
    fn the_authorizer_is_asked() {
        let names = json!([{"name": "group", "expression": "'apps'"}]);
        let text = "authorizer.group(variables.group).resource('x').check('get').reason()";
        assert_eq!(evaluate(names, text), Ok(json!("group(apps).resource(x).check(get).reason()")));
        let wrong = evaluate(json!([]), "authorizer.check(1).allowed()");
        assert_eq!(wrong, Err("authorizer.check: no such overload".to_owned()));
        assert!(evaluate(json!([]), "authorizer.check(authorizer.check('a').reason()).allowed()").is_err());
        assert_eq!(evaluate(json!([]), "true || authorizer.check(1).allowed()"), Ok(json!(true)));
    }

    #[test]
    fn variables_are_composed() {
        let chain = json!([
            {"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "twice", "expression": "variables.replicas * 2"},
            {"name": "missing", "expression": "object.spec.missing"},
        ]);
        assert_eq!(evaluate(chain.clone(), "variables.twice + variables.replicas"), Ok(json!(9)));
        assert_eq!(
            evaluate(chain.clone(), "variables.replicas == 3 || variables.missing == 1"),
            Ok(json!(true))
        );
        let why = evaluate(chain.clone(), "variables.missing == 1").expect_err("no value");
        assert!(why.starts_with("composited variable \"missing\" fails to evaluate: "), "{why}");
        assert!(evaluate(chain, "variables.unknown").is_err());
        let own = json!([{"name": "a", "expression": "variables.a"}]);
        assert!(evaluate(own, "variables.a").is_err());
    }

    #[test]
    fn structs_become_documents() {
        let text = "Object{spec: Object.spec{replicas: object.spec.replicas + 1}}";
        assert_eq!(evaluate(json!([]), text), Ok(json!({"spec": {"replicas": 4}})));
        let text = "[JSONPatch{op: 'remove', path: '/spec/labels/' + jsonpatch.escapeKey('a/b')}]";
        assert_eq!(evaluate(json!([]), text), Ok(json!([{"op": "remove", "path": "/spec/labels/a~1b"}])));
    }
}
