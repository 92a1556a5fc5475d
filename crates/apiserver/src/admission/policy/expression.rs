//! Compiled expressions of policies, and the scope they are evaluated in.

use std::collections::BTreeMap;

use sampan_api::cel::{Authorizer, Budget, CelValue, CompileError, EvalError, Expression};
use serde_json::Value;

use super::rewrite::{identifier, rewrite};

/// What every expression of a policy may name.
const VARIABLES: &[&str] = &["object", "oldObject", "request", "params", "namespaceObject"];

/// Those whose fields have no types: no field of them is known to be a bool, as upstream.
const UNTYPED: &[&str] = &["object", "oldObject", "params"];

/// An expression as it was written and as it is evaluated.
#[derive(Debug)]
pub(in crate::admission) struct Program {
    /// As its author wrote it, for messages.
    pub(super) text: String,
    expression: Expression,
}

impl Program {
    /// Compiles an expression that may name the given variables of its policy.
    pub(in crate::admission) fn compile(text: &str, variables: &[String]) -> Result<Self, String> {
        Self::compile_by(text, variables, Expression::compile_asking)
    }

    /// The same for something that must hold.
    pub(in crate::admission) fn compile_condition(text: &str, variables: &[String]) -> Result<Self, String> {
        let program = Self::compile(text, variables)?;
        let expression = &program.expression;
        if !expression.may_be_bool() || expression.is_part_of(UNTYPED) {
            return Err("must evaluate to bool".to_owned());
        }
        Ok(program)
    }

    /// The same for a message, which may not ask who may what.
    pub(super) fn compile_message(text: &str, variables: &[String]) -> Result<Self, String> {
        let program = Self::compile_by(text, variables, Expression::compile)?;
        if program.expression.may_be_text() { Ok(program) } else { Err("must evaluate to string".to_owned()) }
    }

    fn compile_by(
        text: &str,
        variables: &[String],
        compile: fn(&str, &[&str]) -> Result<Expression, CompileError>,
    ) -> Result<Self, String> {
        let variables: Vec<String> = variables.iter().map(|name| identifier(name)).collect();
        let mut known: Vec<&str> = VARIABLES.to_vec();
        known.extend(variables.iter().map(String::as_str));
        let expression =
            compile(&rewrite(text), &known).map_err(|error| format!("compilation failed: {error}"))?;
        Ok(Self { text: text.trim().to_owned(), expression })
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
    authorizer: &'a dyn Authorizer,
    computed: BTreeMap<usize, Result<CelValue, String>>,
    budget: Budget,
}

impl<'a> Scope<'a> {
    /// A scope over documents in the order of [`VARIABLES`].
    pub(in crate::admission) fn new(
        documents: [&Value; 5],
        authorizer: &'a dyn Authorizer,
        variables: &'a [Variable],
        budget: u64,
    ) -> Self {
        let mut base: Vec<(&'static str, CelValue)> =
            VARIABLES.iter().copied().zip(documents.map(CelValue::from_json)).collect();
        base.push(("authorizer", CelValue::authorizer(authorizer)));
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
        let named: Vec<usize> =
            (0..place).filter(|i| program.expression.uses(&variables[*i].identifier)).collect();
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
        // A variable that has no value is no harm where it is not looked at (`has(x) && variables.y`).
        let found = program.expression.evaluate_asking(&known, self.authorizer, &mut self.budget);
        found.map_err(|error| match error {
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

#[cfg(test)]
pub(in crate::admission) mod tests {
    use sampan_api::cel::{Decision, Question};
    use serde_json::json;

    use super::*;

    /// Allows nothing and repeats what it was asked.
    pub(in crate::admission) struct Nobody;

    impl Authorizer for Nobody {
        fn request_resource(&self) -> Question {
            Question { resource: "widgets".to_owned(), ..Question::default() }
        }

        fn decide(&self, asked: &Question) -> Decision {
            let reason = format!("{} {}/{}", asked.verb, asked.group, asked.resource);
            Decision { reason, ..Decision::default() }
        }
    }

    fn evaluate(variables: Value, text: &str) -> Result<Value, String> {
        let variables = read_variables(&json!({"variables": variables}));
        let program = Program::compile(text, &names_of(&variables))?;
        let object = json!({"spec": {"replicas": 3, "labels": {"a/b": "c"}}});
        let none = Value::Null;
        let documents = [&object, &none, &none, &none, &none];
        let mut scope = Scope::new(documents, &Nobody, &variables, Budget::PER_REQUEST);
        scope.document(&program)
    }

    #[test]
    fn the_authorizer_is_asked() {
        let names = json!([
            {"name": "group", "expression": "authorizer.group('apps')"},
            {"name": "check", "expression": "variables.group.resource('x').check('get')"},
        ]);
        assert_eq!(evaluate(names.clone(), "variables.check.reason()"), Ok(json!("get apps/x")));
        let text = "['a', 'b'].map(r, variables.group.resource(r).check('get').reason())";
        assert_eq!(evaluate(names, text), Ok(json!(["get apps/a", "get apps/b"])));
        let text = "authorizer.requestResource.check('x').reason()";
        assert_eq!(evaluate(json!([]), text), Ok(json!("x /widgets")));
        assert!(evaluate(json!([]), "authorizer.check('a').allowed()").is_err());
        assert_eq!(
            evaluate(json!([]), "authorizer"),
            Err("expression does not result in a document".to_owned())
        );
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
