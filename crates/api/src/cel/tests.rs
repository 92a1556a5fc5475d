//! Rows: an expression, what it gives.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

fn compile(text: &str) -> Expression {
    Expression::compile(text, &["self", "oldSelf"]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn evaluate_on(text: &str, subject: &Value) -> Result<CelValue, EvalError> {
    let subject = CelValue::from_json(subject);
    compile(text).evaluate(&[("self", &subject)], &mut Budget::default())
}

fn subject() -> Value {
    json!({
        "replicas": 3, "ratio": 1.5, "name": "web-1", "empty": "", "flag": true, "none": null,
        "list": [3, 1, 2], "names": ["a", "b", "a"],
        "map": {"x": 1, "y": 2}, "items": [{"name": "a", "port": 80}, {"name": "b", "port": 443}],
    })
}

/// Each of these is true.
#[test]
fn what_holds() {
    #[rustfmt::skip]
    let rows = [
        // Operators.
        "1 + 2 * 3 == 7 && 7 % 4 == 3 && -5 / 2 == -2", "1 < 2u && 2.5 >= 2 && 'a' < 'b'", "!(1 == 2) && 1 != 2",
        "!!true && !(!!false) && !!!false && ! !true", "--1 == 1 && 1--1 == 2 && 1---1 == 0 && - - -1 == -1 && '--!!' == \"--!!\"",
        "self.replicas--1 == 4 && [1][0]--1 == 2 && 1 in [--1] && !(1 in [- -2])",
        "1.0 == 1 && [1] == [1.0]", "true ? true : self.missing", "'a' in ['a'] && 'x' in {'x': 1} && !('z' in self.map)",
        "'a' + 'b' == 'ab' && [1] + [2] == [1, 2] && b'a' + b'b' == b'ab'", "[1, 2][1] == 2 && {'a': 5}['a'] == 5",
        "self.missing > 1 || true", "!(self.missing > 1 && false)",
        // Selection and presence.
        "has(self.name) && !has(self.missing)", "self.none == null", "self.items[0].port == 80",
        "self.?name.hasValue() && !self.?missing.hasValue()", "self.?missing.orValue('x') == 'x'",
        "self.?map.?x.orValue(0) == 1 && self[?'name'].value() == 'web-1'", "[?self.?missing, 1] == [1]",
        "{?'a': self.?missing, 'b': 1} == {'b': 1}", "optional.of(1).or(optional.of(2)).value() == 1",
        "optional.ofNonZeroValue(0) == optional.none()", "self.?name.optMap(n, n + '!').value() == 'web-1!'",
        // Macros.
        "self.list.all(x, x > 0) && self.list.exists(x, x == 2) && self.list.exists_one(x, x == 3)",
        "self.list.map(x, x * 2) == [6, 2, 4] && self.list.map(x, x > 1, x * 2) == [6, 4]",
        "self.list.filter(x, x > 1) == [3, 2] && self.list.filter(x, x > 9) == []",
        "self.map.all(k, self.map[k] > 0) && self.map.map(k, k) == ['x', 'y']",
        "self.items.all(i, self.items.exists_one(j, j.name == i.name))", "[[1], [2, 3]].map(l, l.map(x, x + 1)) == [[2], [3, 4]]",
        "self.list.all(i, v, v > i - 3) && self.map.exists(k, v, k == 'y' && v == 2) && self.list.existsOne(i, v, v == 3)",
        "self.list.transformList(i, v, v * i) == [0, 1, 4] && self.list.transformList(i, v, i > 0, v) == [1, 2]",
        "self.map.transformMap(k, v, v + 1) == {'x': 2, 'y': 3} && self.map.transformMapEntry(k, v, {string(v): k}) == {'1': 'x', '2': 'y'}",
        "cel.bind(n, self.replicas + 1, n * n == 16)", "self.items.sortBy(i, -i.port)[0].name == 'b'",
        "[1, 'a'].exists(x, x > 2 || x == 'a')",
        // Conversions and types.
        "size('né') == 2 && 'né'.size() == 2 && size(b'abc') == 3 && size([1]) == 1 && size({'a': 1}) == 1",
        "int('42') == 42 && int(2.9) == 2 && uint(3) == 3u && double('1.5') == 1.5 && string(1) == '1' && string(1.5) == '1.5'",
        "bool('true') && bytes('a') == b'a' && string(b'a') == 'a' && string(true) == 'true'",
        "type(1) == int && type('a') == string && type(self.list) == list && type(null) == null_type && type(1) != type('')",
        "dyn(1) == 1 && type(timestamp('2024-01-01T00:00:00Z')) == google.protobuf.Timestamp",
        "string(timestamp('2024-01-01T02:00:00+02:00')) == '2024-01-01T00:00:00Z'", "string(duration('90m')) == '5400s'",
        // Times.
        "timestamp('2024-02-03T04:05:06Z').getFullYear() == 2024 && timestamp('2024-02-03T04:05:06Z').getMonth() == 1",
        "timestamp('2024-02-03T04:05:06Z').getDate() == 3 && timestamp('2024-02-03T04:05:06Z').getDayOfMonth() == 2",
        "timestamp('2024-02-03T04:05:06Z').getDayOfWeek() == 6 && timestamp('2024-02-03T04:05:06Z').getDayOfYear() == 33",
        "timestamp('2024-02-03T04:05:06+02:00').getHours() == 2 && timestamp('2024-02-03T04:05:06Z').getHours('+02:00') == 6",
        "timestamp('2024-01-01T12:00:00Z').getHours('Europe/Berlin') == 13 && timestamp('2024-07-01T12:00:00Z').getHours('Europe/Berlin') == 14",
        "timestamp('2024-01-01T02:00:00Z').getDate('America/New_York') == 31 && timestamp('2024-01-01T02:00:00Z').getFullYear('US/Pacific') == 2023",
        "timestamp('2024-01-01T00:00:00Z').getMinutes('Asia/Kolkata') == 30 && timestamp('2024-01-01T00:00:00Z').getHours('-05:30') == 18",
        "timestamp('2024-01-01T00:00:00Z') + duration('1h') > timestamp('2024-01-01T00:30:00Z')",
        "timestamp('2024-01-01T01:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('1h') && duration('90s').getMinutes() == 1",
        "int(timestamp('1970-01-01T00:01:00Z')) == 60 && timestamp(60) == timestamp('1970-01-01T00:01:00Z')",
        // Strings.
        "'hello'.contains('ell') && 'hello'.startsWith('he') && 'hello'.endsWith('lo') && 'a1'.matches('^[a-z]\\\\d$')",
        "'hello'.charAt(1) == 'e' && 'hello'.indexOf('l') == 2 && 'hello'.lastIndexOf('l') == 3 && 'hello'.indexOf('l', 3) == 3",
        "'Ab'.lowerAscii() == 'ab' && 'Ab'.upperAscii() == 'AB' && ' a '.trim() == 'a' && 'abc'.reverse() == 'cba'",
        "'a.b.c'.replace('.', '-') == 'a-b-c' && 'a.b.c'.replace('.', '-', 1) == 'a-b.c' && 'a,b'.split(',') == ['a', 'b']",
        "'hello'.substring(1, 3) == 'el' && 'hello'.substring(3) == 'lo' && ['a', 'b'].join('-') == 'a-b' && ['a'].join() == 'a'",
        "'%s has %d, %.1f'.format(['a', 3, 1.25]) == 'a has 3, 1.2'", "strings.quote('a\"b') == '\"a\\\\\"b\"'",
        "'abc 123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2'] && 'a1b2'.findAll('[0-9]', 1) == ['1']",
        "'abc'.find('[0-9]') == '' && 'a'.findAll('x') == []",
        // Lists and sets.
        "[1, 2, 3].sum() == 6 && [1, 3].max() == 3 && [3, 1].min() == 1 && [1, 2].isSorted() && ![2, 1].isSorted()",
        "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && [1, 2, 3].slice(1, 3) == [2, 3]",
        "[1, [2, [3]]].flatten() == [1, 2, [3]] && [1, 2, 1].distinct() == [1, 2] && [3, 1].sort() == [1, 3]",
        "lists.range(3) == [0, 1, 2] && [1, 2].first().value() == 1 && [1, 2].last().value() == 2 && [1, 2].reverse() == [2, 1]",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2]) && !sets.contains([1], [3])",
        // Kubernetes' libraries.
        "quantity('1Gi').isGreaterThan(quantity('500Mi')) && quantity('1') == quantity('1000m') && quantity('1k').asInteger() == 1000",
        "quantity('1').add(quantity('1')).compareTo(quantity('2')) == 0 && quantity('1').sub(1).sign() == 0",
        "isQuantity('1.5Gi') && !isQuantity('abc') && !isQuantity(' 1') && quantity('2').isInteger() && quantity('500m').asApproximateFloat() == 0.5",
        "url('https://u.example.com:80/a%20b?x=1').getHost() == 'u.example.com:80' && isURL('https://a') && !isURL('a b')",
        "url('https://u.example.com:80/a%20b?x=1').getPort() == '80' && url('https://a/b?x=1&x=2').getQuery()['x'] == ['1', '2']",
        "url('https://a.b:8/p%20q').getHostname() == 'a.b' && url('https://a/p%20q').getEscapedPath() == '/p%20q' && url('https://a').getScheme() == 'https'",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('10.0.0.256') && ip('127.0.0.1').isLoopback() && string(ip('10.0.0.1')) == '10.0.0.1'",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').prefixLength() == 8 && cidr('10.1.0.0/8').masked() == cidr('10.0.0.0/8')",
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0') && ip.isCanonical('::1')",
        "cidr('10.0.0.0/8').ip() == ip('10.0.0.0') && !ip.isCanonical('2001:DB8::1')",
        "semver('1.2.3').major() == 1 && semver('2.0.0').isGreaterThan(semver('1.9.9')) && isSemver('1.0.0-rc.1') && !isSemver('v1')",
        "!format.dns1123Label().validate('web-1').hasValue() && format.dns1123Label().validate('Web').hasValue()",
        "!format.named('uuid').value().validate('550e8400-e29b-41d4-a716-446655440000').hasValue()",
        "math.greatest(1, 5, 3) == 5 && math.least([4, 2]) == 2 && math.abs(-1) == 1 && math.ceil(1.2) == 2.0 && math.bitAnd(6, 3) == 2",
        "math.sign(-3) == -1 && math.isNaN(0.0 / 0.0) && math.floor(1.8) == 1.0 && math.round(1.5) == 2.0 && math.trunc(-1.5) == -1.0",
        "base64.encode(b'hi') == 'aGk=' && base64.decode('aGk=') == b'hi'",
    ];
    let mut wrong = Vec::new();
    for row in rows {
        match evaluate_on(row, &subject()) {
            Ok(CelValue(cel::Value::Bool(true))) => {}
            other => {
                // Name the part that fails.
                let parts: Vec<&str> = row
                    .split(" && ")
                    .filter(|part| {
                        Expression::compile(part, &["self"]).is_ok()
                            && evaluate_on(part, &subject()).map(|v| v.to_json()) != Ok(Some(json!(true)))
                    })
                    .collect();
                wrong.push(format!("{row}: {other:?} in {parts:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_has_no_value() {
    let rows = [
        ("self.missing", "no such key: missing"),
        ("self.name.size", "no such overload"),
        ("self.list[7]", "index out of bounds: 7"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "modulus by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("self.name > 1", "no such overload"),
        ("self.name && true", "no such overload"),
        ("[1].all(x, self.missing)", "no such key: missing"),
        ("oldSelf", "no such attribute(s): oldSelf"),
        ("optional.none().value()", "optional.none() dereference"),
        ("timestamp('x')", "parsing time \"x\""),
        ("quantity('abc')", "quantities must match"),
        ("'a'.matches(self.name + '(')", "error parsing regexp"),
        ("'%.999f'.format([1.5])", "precision out of range"),
        ("self.ratio + 1", "no such overload"),
    ];
    for (text, expected) in rows {
        match evaluate_on(text, &subject()) {
            Err(EvalError::Value(message)) => assert!(message.contains(expected), "{text}: {message}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn what_is_no_expression() {
    let long = format!("'{}' == ''", "a".repeat(20_000));
    let nested = format!("{}1{}", "(".repeat(200), ")".repeat(200));
    let chained = format!("1{} > 0", " + 1".repeat(3000));
    let unary = format!("{}true", "!".repeat(3000));
    let ternary = "true ? 1 : ".repeat(1000) + "1";
    let selected = format!("self{}", ".a".repeat(3000));
    let rows = [
        ("foo", "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo\n | ^"),
        (
            "1 ==\n  bar",
            "ERROR: <input>:2:3: undeclared reference to 'bar' (in container '')\n |   bar\n | ..^",
        ),
        ("self.frobnicate()", "undeclared reference to 'frobnicate' (in container '')"),
        ("frobnicate(1)", "undeclared reference to 'frobnicate' (in container '')"),
        ("request.object", "undeclared reference to 'request' (in container '')"),
        ("size(1, 2)", "found no matching overload for 'size' applied to '(int, int)'"),
        ("'a'.matches('(')", "error parsing regexp"),
        ("1 + 'a'", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("!1", "found no matching overload for '!_' applied to '(int)'"),
        ("1 in 2", "found no matching overload for '@in' applied to '(int, int)'"),
        ("5.all(x, x)", "ERROR"),
        ("1.5.all(x, true)", "ERROR"),
        ("self.all(1, true)", "argument must be a simple name"),
        ("has(1)", "invalid argument to has() macro"),
        ("", "ERROR"),
        ("1 +", "ERROR"),
        ("'a", "ERROR"),
        ("Foo{a: 1}", "undeclared reference to 'Foo'"),
        (&long, "exceeds limit"),
        (&nested, "recursion"),
        (&chained, "recursion"),
        (&unary, "recursion"),
        (&ternary, "recursion"),
        (&selected, "recursion"),
    ];
    for (text, expected) in rows {
        let shown: String = text.chars().take(60).collect();
        match Expression::compile(text, &["self"]) {
            Err(error) => assert!(error.0.contains(expected), "{shown}: {error}"),
            Ok(_) => panic!("{shown} compiles"),
        }
    }
}

/// What the bounds let through fits on the stack of a worker thread.
#[test]
fn deepest_expressions_fit_on_a_small_stack() {
    let nested = format!("{}1{} > 0", "(".repeat(20), ")".repeat(20));
    let lists = format!("size({}1{}) > 0", "[".repeat(20), "]".repeat(20));
    let chained = format!("1{} > 0", " + 1".repeat(120));
    let unary = format!("{}true", "!".repeat(100));
    let both = format!("{}1{} > 0", "(1 + 1 + 1 + 1 + ".repeat(20), ")".repeat(20));
    let lambdas = format!("{}true{}", "[1].all(x, ".repeat(12), ")".repeat(12));
    let signs = format!("{}true{}", "!!(".repeat(20), ")".repeat(20));
    let conditions = vec!["self.replicas > 0"; 200].join(" && ");
    for text in [nested, lists, chained, unary, both, lambdas, signs, conditions] {
        let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
        let shown = text.clone();
        let run = thread.spawn(move || evaluate_on(&text, &subject()).map(|value| value.to_json()));
        let result = run.map(|thread| thread.join());
        assert!(matches!(result, Ok(Ok(Ok(Some(Value::Bool(true)))))), "{shown}: {result:?}");
    }
}

/// Nothing runs long or takes much memory, whatever it tries.
#[test]
fn cost_is_limited() {
    let numbers: Vec<u64> = (0..8000).collect();
    let names: Vec<String> = numbers.iter().map(|n| format!("{n}-{}", "x".repeat(100))).collect();
    let subject = json!({"numbers": numbers, "names": names, "text": "a".repeat(1_000_000)});
    let rows = [
        "self.numbers.all(x, self.numbers.all(y, x + y >= 0))",
        "self.numbers.all(x, self.numbers.filter(y, y < x).size() >= 0)",
        "self.names.all(x, self.names.exists_one(y, x == y))",
        "self.names.map(x, self.text + x).size() > 0",
        "self.numbers.all(x, self.text.contains('ab' + string(x)) || true)",
        "self.text.replace('', self.text).size() > 0",
        "self.numbers.all(x, self.text.matches('(a*)*' + string(x)) || true)",
        "lists.range(1000000000).size() > 0",
        "lists.range(900000).map(x, lists.range(900000)).size() > 0",
        "self.names.map(x, self.names).map(x, x.join(self.text)).size() > 0",
        "self.text.split('').size() > 0 && self.text.split('').size() > 0",
        "cel.bind(a, self.text + self.text, cel.bind(b, a + a, cel.bind(c, b + b, c + c + c + c))).size() > 0",
        "self.numbers.all(x, ['%s'].join(self.text).size() >= 0)",
        "sets.contains(self.names, self.names)",
        "self.names.distinct().size() > 0",
        "self.numbers.all(i, v, self.numbers.all(j, w, v + w >= 0))",
        "self.numbers.all(x, self.numbers.all(y, self.numbers[x] >= 0))",
        "self.numbers.all(x, self.numbers.all(y, y != self && self != y))",
        "self.numbers.all(x, self.numbers.all(y, 'numbers' in self))",
        "self.numbers.all(x, self.numbers.all(y, !(1 in [self])))",
        "self.numbers.all(x, self.numbers.all(y, size(self.numbers) > 0))",
        "self.numbers.all(x, self.numbers.all(y, size(self.text) > 0))",
        "self.numbers.sortBy(x, self.numbers.map(y, y + x).size()).size() > 0",
        "cel.bind(u, url('/' + self.text), self.numbers.all(x, self.numbers.all(y, u == u)))",
        "cel.bind(u, url('/' + self.text), self.numbers.all(x, self.numbers.all(y, u.getEscapedPath() != '')))",
        "cel.bind(u, url('/?' + self.text), self.numbers.all(x, self.numbers.all(y, u.getQuery().size() > 0)))",
        "cel.bind(g, authorizer.group(self.text), self.numbers.map(x, self.numbers.map(y, g.resource('a')))).size() > 0",
        "cel.bind(g, authorizer.group('').resource(self.text), self.numbers.all(x, self.numbers.all(y, g == g)))",
        "self.numbers.all(x, self.numbers.all(y, self.set != ['x'] && self.set + ['x'] != self.set))",
        // Elements without names are compared each with each: in a union also with what came before, and inside of others.
        "self.empty + self.objects != self.empty",
        "self.set + self.objects != self.set",
        "self.objects != self.turned",
        "{'a': [self.objects]} != {'a': [self.turned]}",
        // They may be large, and differ at their ends only.
        "self.large != self.largeTurned",
    ];
    let objects: Vec<Value> = (0..5000).map(|n| json!({"a": n, "b": "x"})).collect();
    let large: Vec<Value> = (0..300).map(|n| json!({"a": "x".repeat(3000), "b": n})).collect();
    let turned = |items: &[Value]| items.iter().rev().cloned().collect::<Vec<Value>>();
    let sets = [
        ("set", vec![json!("a".repeat(1_000_000))]),
        ("empty", Vec::new()),
        ("turned", turned(&objects)),
        ("objects", objects),
        ("largeTurned", turned(&large)),
        ("large", large),
    ];
    for text in rows {
        let CelValue(cel::Value::Map(subject)) = CelValue::from_json(&subject) else { panic!("a map") };
        let (mut lists, mut fields) = (Lists::default(), (*subject.map).clone());
        for (name, items) in &sets {
            let items = items.iter().map(|item| CelValue::from_json(item).0).collect();
            fields.insert((*name).into(), lists.make(items, ListKind::Set));
        }
        let subject = CelValue(cel::Value::Map(cel::objects::Map { map: fields.into() }));
        let expression =
            Expression::compile_asking(text, &["self"]).unwrap_or_else(|error| panic!("{error}"));
        let authorizer = CelValue::authorizer(&Telling);
        let mut budget = Budget::default();
        let start = Instant::now();
        let variables = [("self", &subject), ("authorizer", &authorizer)];
        let result = expression.evaluate_bool_with(&variables, &lists, &mut budget);
        assert_eq!(result, Err(EvalError::Cost), "{text}");
        assert_eq!(budget.left(), Budget::PER_REQUEST - Budget::PER_EXPRESSION, "{text}");
        // A loose bound for slow machines and unoptimised code.
        assert!(start.elapsed() < Duration::from_secs(5), "{text} took {:?}", start.elapsed());
    }
}

#[test]
fn a_budget_ends() {
    let list: Vec<u64> = (0..1000).collect();
    let subject = CelValue::from_json(&json!(list));
    let expression = compile("self.all(x, x >= 0)");
    let mut budget = Budget::new(20_000);
    let mut runs = 0;
    let end = loop {
        match expression.evaluate_bool(&[("self", &subject)], &mut budget) {
            Ok(true) => runs += 1,
            other => break other,
        }
    };
    assert_eq!(end, Err(EvalError::Budget));
    assert!((1..=10).contains(&runs), "{runs}");
    assert_eq!(budget.left(), 0);
    assert_eq!(EvalError::Cost.to_string(), "operation cancelled: actual cost limit exceeded");
}

/// A value that is cheap because it shares its parts is not written out.
#[test]
fn results_as_json_are_bounded() {
    let doubled = |times: usize| format!("[1]{}", ".map(x, [x, x])".repeat(times));
    let copied = "self.numbers.map(x, self)".to_owned();
    let subject = json!({"numbers": vec![0; 1000], "text": "a".repeat(10_000)});
    for (text, is_written) in
        [(doubled(10), true), (doubled(24), false), (copied.clone(), false), (format!("{copied}[0]"), true)]
    {
        let begin = Instant::now();
        let value = evaluate_on(&text, &subject).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(value.to_json().is_some(), is_written, "{text}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{text}");
    }
}

#[test]
fn results_as_json() {
    let rows = [
        ("{'a': [1, 2.5, null, true]}", json!({"a": [1, 2.5, null, true]})),
        ("b'hi'", json!("aGk=")),
        ("timestamp('2024-01-01T00:00:00Z')", json!("2024-01-01T00:00:00Z")),
        ("duration('1500ms')", json!("1.5s")),
        ("optional.of('x')", json!("x")),
        ("optional.none()", json!(null)),
        ("self.items.map(i, i.name)", json!(["a", "b"])),
    ];
    for (text, expected) in rows {
        assert_eq!(evaluate_on(text, &subject()).map(|value| value.to_json()), Ok(Some(expected)), "{text}");
    }
    let expression = compile("self.name + oldSelf");
    assert!(expression.uses("oldSelf") && !expression.uses("name"));
    assert_eq!(expression.variables(), ["self", "oldSelf"]);
    assert!(matches!(
        compile("self.name").evaluate_bool(&[("self", &CelValue::from_json(&subject()))], &mut Budget::default()),
        Err(EvalError::Value(message)) if message.contains("got string")
    ));
}

/// Allows what is asked of pods, says what it was asked, and has no answer about paths.
struct Telling;

impl Authorizer for Telling {
    fn request_resource(&self) -> Question {
        Question {
            group: "apps".into(),
            resource: "deployments".into(),
            name: "d".into(),
            ..Question::default()
        }
    }

    fn decide(&self, question: &Question) -> Decision {
        let Question { account, group, resource, subresource, namespace, name, verb, .. } = question;
        let account =
            account.as_ref().map_or(String::new(), |(namespace, name)| format!("{namespace}:{name} "));
        let selectors = format!("{}{}", question.field_selector, question.label_selector);
        Decision {
            allowed: resource == "pods",
            reason: format!("{account}{verb} {group}/{resource}/{subresource} {namespace}/{name}{selectors}"),
            error: question.path.as_ref().map(|path| format!("{verb} {path}")),
        }
    }
}

fn ask(text: &str) -> Result<serde_json::Value, String> {
    let compiled = Expression::compile_asking(text, &["self"]).map_err(|error| error.to_string())?;
    let (authorizer, subject) = (CelValue::authorizer(&Telling), CelValue::from_json(&subject()));
    let variables = [("authorizer", &authorizer), ("self", &subject)];
    let found = compiled.evaluate_asking(&variables, &Telling, &mut Budget::default());
    found.map_err(|error| error.to_string()).map(|value| value.to_json().unwrap_or_default())
}

#[test]
fn the_authorizer_is_a_value() {
    let rows = [
        ("authorizer.group('').resource('pods').check('get').allowed()", json!(true)),
        ("authorizer.group('').resource('nodes').check('get').allowed()", json!(false)),
        (
            "authorizer.group('g').resource('r').subresource('s').namespace('n').name('x').check('get').reason()",
            json!("get g/r/s n/x"),
        ),
        ("authorizer.requestResource.check('update').reason()", json!("update apps/deployments/ /d")),
        (
            "authorizer.requestResource.name('').namespace('m').check('list').reason()",
            json!("list apps/deployments/ m/"),
        ),
        (
            "authorizer.serviceAccount('ns', 'sa').group('').resource('pods').check('get').reason()",
            json!("ns:sa get /pods/ /"),
        ),
        (
            "authorizer.group('').resource('pods').fieldSelector('a=b').labelSelector('c').check('list').reason()",
            json!("list /pods/ /a=bc"),
        ),
        ("authorizer.path('/healthz').check('get').errored()", json!(true)),
        ("authorizer.path('/healthz').check('get').error()", json!("get /healthz")),
        ("authorizer.group('').resource('pods').check('get').error()", json!("")),
        // As a value: bound, in lists, in macros, in conditions, behind a name of its own.
        ("cel.bind(a, authorizer.group(''), a.resource('pods').check('get').allowed())", json!(true)),
        (
            "['pods', 'nodes'].map(r, authorizer.group('').resource(r).check('get').allowed())",
            json!([true, false]),
        ),
        (
            "[authorizer.group(''), authorizer.group('x')].map(g, g.resource('pods').check('get').reason())",
            json!(["get /pods/ /", "get x/pods/ /"]),
        ),
        ("(self.flag ? authorizer.path('/a') : authorizer.path('/b')).check('get').error()", json!("get /a")),
        ("cel.bind(d, authorizer.path('/a').check('get'), [d.allowed(), d.errored()])", json!([false, true])),
        (
            "authorizer.group('') == authorizer.group('') && authorizer.group('') != authorizer.group('a')",
            json!(true),
        ),
        ("type(authorizer) != type(authorizer.path('/'))", json!(true)),
    ];
    for (text, expected) in rows {
        assert_eq!(ask(text), Ok(expected), "{text}");
    }
    let rows = [
        ("authorizer.path(' ').check('get').allowed()", "path must not be empty"),
        ("authorizer.group('').resource('').check('get').allowed()", "resource must not be empty"),
        (
            "authorizer.serviceAccount('a.b', 'x').path('/').check('get').allowed()",
            "Invalid service account namespace",
        ),
        (
            "authorizer.serviceAccount('a', 'X').path('/').check('get').allowed()",
            "Invalid service account name",
        ),
        (
            "authorizer.group(1).resource('x').check('get').allowed()",
            "found no matching overload for 'group'",
        ),
        ("authorizer.resource('x').check('get').allowed()", "found no matching overload for 'resource'"),
        ("authorizer.group('x').check('get').allowed()", "found no matching overload for 'check'"),
        ("authorizer.path('/').allowed()", "found no matching overload for 'allowed'"),
        ("authorizer.nothing", "does not support field selection"),
        ("authorizer.serviceAccount('a', 'b').requestResource.check('get').allowed()", "no such"),
        ("dyn(authorizer).allowed()", "no such overload"),
        ("self.name.allowed()", "no such overload"),
        ("authorizer.size() == 1", "found no matching overload for 'size'"),
        ("[1, 2, 3].all(x, !authorizer.path('/').check('get').allowed())", "actual cost limit exceeded"),
    ];
    for (text, expected) in rows {
        let found = ask(text).expect_err(text);
        assert!(found.contains(expected), "{text}: {found}");
    }
    assert!(ask("[1, 2].all(x, !authorizer.path('/').check('get').allowed())").is_ok(), "two checks fit");
    // Elsewhere there is no such variable.
    assert!(Expression::compile("authorizer.path('/').check('get').allowed()", &["self"]).is_err());
}

#[test]
fn selections_are_found() {
    let rows = [
        ("self.email", true),
        ("[1].all(x, has(self.email))", true),
        ("self.?email.orValue('') == ''", true),
        ("{'a': self.email}.a == ''", true),
        ("self.emails", false),
        ("self.x.email", false),
        ("self['email']", false),
        ("oldSelf.email", false),
    ];
    for (text, expected) in rows {
        assert_eq!(compile(text).selects("self", "email"), expected, "{text}");
    }
}

#[test]
fn parts_of_variables_are_told() {
    let rows = [
        ("self", true),
        ("self.a.b", true),
        ("self['a'][0].b", true),
        ("has(self.a)", false),
        ("self.a == 1", false),
        ("self.?a", false),
        ("oldSelf.a", false),
        ("self.a.exists(x, x)", false),
        ("(true ? self.a : self.b)", false),
    ];
    for (text, expected) in rows {
        assert_eq!(compile(text).is_part_of(&["self"]), expected, "{text}");
    }
}
