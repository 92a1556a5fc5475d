// What programs written with the JavaScript client of Kubernetes do, one function per scenario.
//
//     node scenarios.js list                      the names of the scenarios, one per line
//     node scenarios.js run SCENARIO NAMESPACE    runs one; the exit code says whether everything held
//
// The client is found below the directory SAMPAN_NODE_CLIENT, the cluster is the one of KUBECONFIG, the namespace is
// there and empty, and the image busybox:1 has its shell as its entry point. A scenario waits for conditions, never
// for durations.

import assert from 'node:assert/strict';
import net from 'node:net';
import { PassThrough, Writable } from 'node:stream';
import { pathToFileURL } from 'node:url';

// How long anything may take. Only waited for when something is broken.
const PATIENCE = 40_000;
const IMAGE = 'busybox:1';
const scenarios = {};

let k8s;
let config;
let core;
let apps;

async function loadClient() {
    const entry = `${process.env.SAMPAN_NODE_CLIENT}/node_modules/@kubernetes/client-node/dist/index.js`;
    k8s = await import(pathToFileURL(entry));
    config = new k8s.KubeConfig();
    config.loadFromDefault();
    core = config.makeApiClient(k8s.CoreV1Api);
    apps = config.makeApiClient(k8s.AppsV1Api);
}

/** Calls `look` until it gives something true, and gives that. */
async function eventually(what, look) {
    const deadline = Date.now() + PATIENCE;
    for (;;) {
        const found = await look();
        if (found) return found;
        assert(Date.now() < deadline, `${what}: gave up`);
        await new Promise((resume) => setTimeout(resume, 20));
    }
}

/** Holds that a call is refused with this code, this reason and a message that contains this text. */
async function refused(code, reason, part, call) {
    try {
        await call;
    } catch (error) {
        assert.equal(error.code, code, `code of ${error}`);
        const status = typeof error.body === 'string' ? JSON.parse(error.body) : error.body;
        assert.equal(status.kind, 'Status');
        assert.equal(status.reason, reason, status.message);
        assert(status.message.includes(part), `no ${part} in ${status.message}`);
        return status;
    }
    return assert.fail(`accepted, but should be refused with ${code} ${reason} ${part}`);
}

/** A stream that keeps what is written into it. */
class Kept extends Writable {
    text = '';
    _write(chunk, _encoding, done) {
        this.text += chunk.toString();
        done();
    }
}

function pod(name, script, container = {}, spec = {}) {
    const main = { name: 'c', image: IMAGE, command: ['/bin/sh', '-c', script], ...container };
    return {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name, labels: { app: name } },
        spec: { containers: [main], terminationGracePeriodSeconds: 1, ...spec },
    };
}

function deployment(name, replicas) {
    const template = pod(name, 'sleep 1000');
    return {
        apiVersion: 'apps/v1',
        kind: 'Deployment',
        metadata: { name },
        spec: {
            replicas,
            selector: { matchLabels: { app: name } },
            template: { metadata: { labels: { app: name } }, spec: template.spec },
        },
    };
}

const configMap = (name, data, labels) => ({ metadata: { name, labels }, data });

async function runningPod(namespace, body) {
    await core.createNamespacedPod({ namespace, body });
    const { name } = body.metadata;
    await eventually(`pod ${name} is ready`, async () => {
        const { status } = await core.readNamespacedPod({ name, namespace });
        return status.conditions?.some((c) => c.type === 'Ready' && c.status === 'True');
    });
}

const patchAs = (kind) => k8s.setHeaderOptions('Content-Type', kind);

scenarios['typed-objects'] = async (namespace) => {
    const name = 'a';
    const made = await core.createNamespacedConfigMap({ namespace, body: configMap(name, { n: '1' }, { app: 'x' }) });
    assert(made.metadata.creationTimestamp instanceof Date && made.metadata.uid);
    await refused(409, 'AlreadyExists', '"a" already exists',
        core.createNamespacedConfigMap({ namespace, body: configMap(name) }));
    const listed = await core.listNamespacedConfigMap({ namespace, labelSelector: 'app in (x)' });
    assert.deepEqual(listed.items.map((i) => i.metadata.name), [name]);
    const merged = await core.patchNamespacedConfigMap(
        { name, namespace, body: { data: { m: '2' } } }, patchAs(k8s.PatchStrategy.MergePatch));
    assert.deepEqual(merged.data, { n: '1', m: '2' });
    const patched = await core.patchNamespacedConfigMap(
        { name, namespace, body: [{ op: 'remove', path: '/data/n' }] }, patchAs(k8s.PatchStrategy.JsonPatch));
    assert.deepEqual(patched.data, { m: '2' });
    await refused(409, 'Conflict', 'the object has been modified',
        core.replaceNamespacedConfigMap({ name, namespace, body: { ...made, data: { z: '1' } } }));
    const replaced = await core.replaceNamespacedConfigMap({ name, namespace, body: { ...patched, data: { r: '3' } } });
    assert.deepEqual(replaced.data, { r: '3' });
    const status = await core.deleteNamespacedConfigMap({ name, namespace });
    assert.equal(status.status, 'Success');
    assert.deepEqual([status.details.name, status.details.kind, status.details.uid], [name, 'configmaps', made.metadata.uid]);
    await refused(404, 'NotFound', 'configmaps "a" not found', core.readNamespacedConfigMap({ name, namespace }));

    const secret = await core.createNamespacedSecret({ namespace, body: { metadata: { generateName: 'g-' }, stringData: { k: 'v' } } });
    assert.match(secret.metadata.name, /^g-[a-z0-9]{5}$/);
    assert.deepEqual([secret.data.k, secret.stringData, secret.type], ['dg==', undefined, 'Opaque']);
    await refused(422, 'Invalid', 'metadata.name: Invalid value: "Not a name"',
        core.createNamespacedConfigMap({ namespace, body: configMap('Not a name') }));
    await refused(404, 'NotFound', 'namespaces "absent" not found',
        core.createNamespacedConfigMap({ namespace: 'absent', body: configMap('a') }));

    let seen = [];
    let next;
    for (let number = 0; number < 7; number++) {
        await core.createNamespacedConfigMap({ namespace, body: configMap(`p-${number}`, {}, { page: 'yes' }) });
    }
    do {
        const page = await core.listNamespacedConfigMap({ namespace, limit: 3, _continue: next, labelSelector: 'page' });
        seen = seen.concat(page.items.map((i) => i.metadata.name));
        next = page.metadata._continue;
    } while (next);
    assert.deepEqual(seen, [0, 1, 2, 3, 4, 5, 6].map((n) => `p-${n}`));
    await core.deleteCollectionNamespacedConfigMap({ namespace, labelSelector: 'page' });
    assert.equal((await core.listNamespacedConfigMap({ namespace, labelSelector: 'page' })).items.length, 0);
};

scenarios['untyped-objects'] = async (namespace) => {
    const objects = k8s.KubernetesObjectApi.makeApiClient(config);
    const spec = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'o', namespace }, data: { a: '1' } };
    await objects.create(spec);
    assert.deepEqual((await objects.read(spec)).data, { a: '1' });
    const applied = await objects.patch({ ...spec, data: { b: '2' } }, undefined, undefined, 'robot', true,
        k8s.PatchStrategy.ServerSideApply);
    assert.deepEqual(applied.data, { a: '1', b: '2' });
    assert(applied.metadata.managedFields.some((m) => m.manager === 'robot' && m.operation === 'Apply'));
    const web = await objects.create({ ...deployment('web', 0), metadata: { name: 'web', namespace } });
    assert.equal(web.spec.strategy.type, 'RollingUpdate');
    const strategic = await objects.patch({ apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: 'web', namespace },
        spec: { template: { spec: { containers: [{ name: 'side', image: IMAGE }] } } } });
    assert.deepEqual(strategic.spec.template.spec.containers.map((c) => c.name).sort(), ['c', 'side']);
    const listed = await objects.list('apps/v1', 'Deployment', namespace);
    assert.deepEqual(listed.items.map((i) => [i.kind ?? 'Deployment', i.metadata.name]), [['Deployment', 'web']]);
    await objects.delete(web);
    await refused(404, 'NotFound', '"web" not found', objects.read(web));
    await assert.rejects(objects.create({ apiVersion: 'v1', kind: 'Nonsense', metadata: { name: 'n', namespace } }),
        /Unrecognized API version and kind: v1 Nonsense/);
};

scenarios['watch-and-abort'] = async (namespace) => {
    const watch = new k8s.Watch(config);
    const path = `/api/v1/namespaces/${namespace}/configmaps`;
    const { metadata } = await core.listNamespacedConfigMap({ namespace });
    const seen = [];
    let ended;
    const end = new Promise((resolve) => { ended = resolve; });
    const controller = await watch.watch(path, { resourceVersion: metadata.resourceVersion, allowWatchBookmarks: true },
        (phase, object) => seen.push(`${phase} ${object.metadata.name}`), ended);
    await core.createNamespacedConfigMap({ namespace, body: configMap('a', { n: '1' }) });
    await core.patchNamespacedConfigMap({ name: 'a', namespace, body: { data: { n: '2' } } },
        patchAs(k8s.PatchStrategy.StrategicMergePatch));
    await core.deleteNamespacedConfigMap({ name: 'a', namespace });
    await eventually('three events', () => seen.length >= 3);
    assert.deepEqual(seen, ['ADDED a', 'MODIFIED a', 'DELETED a']);
    controller.abort();
    const error = await end;
    assert(error === null || error.name === 'AbortError', `the watch ended with ${error}`);
    await core.createNamespacedConfigMap({ namespace, body: configMap('b') });
    assert.equal(seen.length, 3, 'nothing is seen after the end');

    // The server ends a watch when its time is over, without an error.
    const over = await new Promise((resolve) => {
        watch.watch(path, { resourceVersion: metadata.resourceVersion, timeoutSeconds: 1 }, () => {}, resolve);
    });
    assert.equal(over, null);
    const nobody = await new Promise((resolve) => {
        watch.watch(`/apis/absent.example/v1/namespaces/${namespace}/things`, {}, () => {}, resolve);
    });
    assert.equal(nobody.statusCode, 404);
};

/** A door between client and server that can be shut: the connections through it break. */
async function door() {
    const { hostname, port } = new URL(config.getCurrentCluster().server);
    const open = new Set();
    let passed = 0;
    const server = net.createServer((near) => {
        const far = net.connect(Number(port), hostname);
        passed += 1;
        for (const socket of [near, far]) {
            open.add(socket);
            socket.on('error', () => {});
            socket.on('close', () => { open.delete(socket); near.destroy(); far.destroy(); });
        }
        near.pipe(far).pipe(near);
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const through = new k8s.KubeConfig();
    through.loadFromString(config.exportConfig());
    through.clusters = through.clusters.map((c) => ({ ...c, server: `https://127.0.0.1:${server.address().port}` }));
    const shut = () => { for (const socket of open) socket.destroy(); };
    return { config: through, shut, passed: () => passed, close: () => { server.close(); shut(); } };
}

scenarios['informer-survives-a-reconnect'] = async (namespace) => {
    const way = await door();
    const api = way.config.makeApiClient(k8s.CoreV1Api);
    const list = () => api.listNamespacedConfigMap({ namespace, labelSelector: 'kept=yes' });
    const informer = k8s.makeInformer(way.config, `/api/v1/namespaces/${namespace}/configmaps`, list, 'kept=yes');
    const seen = { add: [], update: [], delete: [] };
    let stopped = false;
    let failures = 0;
    for (const kind of Object.keys(seen)) informer.on(kind, (object) => seen[kind].push(object.metadata.name));
    informer.on('error', () => {
        failures += 1;
        if (!stopped) setTimeout(() => informer.start(), 50);
    });
    const create = (name) => core.createNamespacedConfigMap({ namespace, body: configMap(name, { n: '0' }, { kept: 'yes' }) });
    try {
        await create('before');
        await informer.start();
        await eventually('the first list', () => informer.get('before', namespace));
        await create('during');
        await eventually('a new object', () => informer.get('during', namespace));
        const connections = way.passed();
        way.shut();
        // This happens while nobody listens; the watch goes on from the version it had.
        await create('between');
        await core.deleteNamespacedConfigMap({ name: 'before', namespace });
        await core.patchNamespacedConfigMap({ name: 'during', namespace, body: { data: { n: '1' } } },
            patchAs(k8s.PatchStrategy.MergePatch));
        await eventually('what happened in between', () => informer.get('between', namespace)
            && !informer.get('before', namespace) && informer.get('during', namespace).data.n === '1');
        assert(way.passed() > connections, 'there was a new connection');
        assert(failures > 0, 'the informer has noticed');
        assert.deepEqual(seen, { add: ['before', 'during', 'between'], update: ['during'], delete: ['before'] },
            'every change was told once');
        assert.deepEqual(informer.list(namespace).map((o) => o.metadata.name).sort(), ['between', 'during']);
    } finally {
        stopped = true;
        await informer.stop();
        way.close();
    }
};

/** Runs a command in a container and gives both outputs and the status. */
async function execute(namespace, name, command, stdin = null, tty = false) {
    const [stdout, stderr] = [new Kept(), new Kept()];
    const status = await new Promise((resolve, reject) => {
        new k8s.Exec(config).exec(namespace, name, 'c', command, stdout, tty ? null : stderr, stdin, tty, resolve)
            .then((socket) => socket.on('error', reject), reject);
    });
    return { stdout: stdout.text, stderr: stderr.text, status };
}

scenarios['exec'] = async (namespace) => {
    await runningPod(namespace, pod('p', 'sleep 1000'));
    const both = await execute(namespace, 'p', ['/bin/sh', '-c', 'echo out; echo err >&2; exit 7']);
    assert.deepEqual([both.stdout, both.stderr], ['out\n', 'err\n']);
    assert.equal(both.status.reason, 'NonZeroExitCode');
    assert.deepEqual(both.status.details.causes, [{ reason: 'ExitCode', message: '7' }]);
    assert.equal((await execute(namespace, 'p', ['true'])).status.status, 'Success');

    // Version 5 of the protocol can close the input: cat ends.
    const typed = new PassThrough();
    const cat = execute(namespace, 'p', ['cat'], typed);
    typed.write('first ');
    typed.end('second');
    const said = await cat;
    assert.deepEqual([said.stdout, said.status.status], ['first second', 'Success']);

    const big = await execute(namespace, 'p', ['/bin/sh', '-c', "head -c 3000000 /dev/zero | tr '\\0' x"]);
    assert.equal(big.stdout.length, 3_000_000, 'nothing is lost');
    const terminal = await execute(namespace, 'p', ['tty'], null, true);
    assert.match(terminal.stdout, /^\/dev\/pts\/\d+\r\n$/);
    await assert.rejects(new k8s.Exec(config).exec(namespace, 'absent', 'c', ['true'], new Kept(), null, null, false));
    const missing = await execute(namespace, 'p', ['nosuch']).catch((error) => ({ status: { status: 'Failure', message: String(error.message ?? error.error) } }));
    assert.equal(missing.status.status, 'Failure');
};

scenarios['attach'] = async (namespace) => {
    const script = 'while read line; do echo got $line; done; echo end of input; sleep 1000';
    await runningPod(namespace, pod('p', script, { stdin: true, stdinOnce: true }));
    const output = new Kept();
    const input = new PassThrough();
    const socket = await new k8s.Attach(config).attach(namespace, 'p', 'c', output, null, input, false);
    input.write('one\n');
    await eventually('an echo', () => output.text.includes('got one\n'));
    input.end();
    await eventually('the end', () => output.text.includes('end of input\n'));
    socket.close();
};

scenarios['log'] = async (namespace) => {
    const script = 'echo one; until test -f /go; do sleep 0.05; done; echo two';
    await core.createNamespacedPod({ namespace, body: pod('p', script, {}, { restartPolicy: 'Never' }) });
    await eventually('the pod runs', async () =>
        (await core.readNamespacedPod({ name: 'p', namespace })).status.phase === 'Running');
    const followed = new PassThrough();
    let text = '';
    let ended = false;
    followed.on('data', (data) => { text += data; });
    followed.on('end', () => { ended = true; });
    const log = new k8s.Log(config);
    await log.log(namespace, 'p', 'c', followed, { follow: true, tailLines: 10 });
    await eventually('the first line', () => text === 'one\n');
    await execute(namespace, 'p', ['touch', '/go']);
    await eventually('the end of the log', () => ended);
    assert.equal(text, 'one\ntwo\n');
    assert.equal(await core.readNamespacedPodLog({ name: 'p', namespace, tailLines: 1 }), 'two\n');
    assert.match(await core.readNamespacedPodLog({ name: 'p', namespace, timestamps: true, tailLines: 1 }),
        /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z two\n$/);
    await refused(400, 'BadRequest', 'previous terminated container',
        core.readNamespacedPodLog({ name: 'p', namespace, previous: true }));
    await assert.rejects(log.log(namespace, 'absent', 'c', new PassThrough()), (error) => error.code === 404);

    // A follower that goes away is no trouble.
    await core.createNamespacedPod({ namespace, body: pod('q', 'while echo tick; do sleep 0.05; done') });
    await eventually('the other pod runs', async () =>
        (await core.readNamespacedPod({ name: 'q', namespace })).status.phase === 'Running');
    const ticks = new Kept();
    ticks.on('error', () => {});
    const controller = await log.log(namespace, 'q', 'c', ticks, { follow: true });
    await eventually('ticks', () => ticks.text.includes('tick'));
    controller.abort();
};

scenarios['port-forward'] = async (namespace) => {
    const script = 'mkdir /www; echo forwarded > /www/index.html; exec httpd -f -p 8080 -h /www';
    await runningPod(namespace, pod('p', script, { readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 } }));
    for (let turn = 0; turn < 3; turn++) {
        const output = new Kept();
        const errors = new Kept();
        const input = new PassThrough();
        const socket = await new k8s.PortForward(config).portForward(namespace, 'p', [8080], output, errors, input);
        input.write('GET / HTTP/1.0\r\n\r\n');
        await eventually('an answer', () => output.text.endsWith('forwarded\n'));
        assert.equal(errors.text, '');
        socket.close();
    }
};

scenarios['custom-objects'] = async (namespace) => {
    const group = `${namespace}.sampan.test`;
    const name = `gizmos.${group}`;
    const extensions = config.makeApiClient(k8s.ApiextensionsV1Api);
    const schema = { type: 'object', properties: { spec: { type: 'object', properties: {
        size: { type: 'integer', minimum: 1, description: 'How big it is.' } } } } };
    await extensions.createCustomResourceDefinition({ body: { apiVersion: 'apiextensions.k8s.io/v1', kind: 'CustomResourceDefinition',
        metadata: { name }, spec: { group, scope: 'Namespaced', names: { kind: 'Gizmo', plural: 'gizmos' },
            versions: [{ name: 'v1', served: true, storage: true, schema: { openAPIV3Schema: schema },
                selectableFields: [{ jsonPath: '.spec.size' }] }] } } });
    const custom = config.makeApiClient(k8s.CustomObjectsApi);
    const place = { group, version: 'v1', namespace, plural: 'gizmos' };
    const gizmo = (title, size) => ({ apiVersion: `${group}/v1`, kind: 'Gizmo', metadata: { name: title }, spec: { size } });
    try {
        await eventually('the kind is established', async () => (await extensions.readCustomResourceDefinition({ name }))
            .status?.conditions?.some((c) => c.type === 'Established' && c.status === 'True'));
        const made = await custom.createNamespacedCustomObject({ ...place, body: gizmo('a', 3) });
        assert.equal(made.metadata.generation, 1);
        await custom.createNamespacedCustomObject({ ...place, body: gizmo('b', 4) });
        await refused(422, 'Invalid', 'spec.size in body should be greater than or equal to 1',
            custom.createNamespacedCustomObject({ ...place, body: gizmo('c', 0) }));
        const big = await custom.listNamespacedCustomObject({ ...place, fieldSelector: 'spec.size=4' });
        assert.deepEqual(big.items.map((i) => i.metadata.name), ['b']);
        // An informer on a kind the client has never heard of.
        const list = () => custom.listNamespacedCustomObject(place);
        const informer = k8s.makeInformer(config, `/apis/${group}/v1/namespaces/${namespace}/gizmos`, list);
        const updates = [];
        informer.on('update', (object) => updates.push(object.spec.size));
        await informer.start();
        await custom.patchNamespacedCustomObject({ ...place, name: 'a', body: [{ op: 'replace', path: '/spec/size', value: 5 }] },
            patchAs(k8s.PatchStrategy.JsonPatch));
        await eventually('an update', () => updates.includes(5));
        await informer.stop();
        const objects = k8s.KubernetesObjectApi.makeApiClient(config);
        assert.equal((await objects.read({ ...gizmo('a'), metadata: { name: 'a', namespace } })).spec.size, 5);
    } finally {
        await extensions.deleteCustomResourceDefinition({ name });
    }
};

scenarios['rights'] = async (namespace) => {
    await core.createNamespacedServiceAccount({ namespace, body: { metadata: { name: 'robot' } } });
    const request = { spec: { audiences: [], expirationSeconds: 3600 } };
    const { status } = await core.createNamespacedServiceAccountToken({ name: 'robot', namespace, body: request });
    const robot = new k8s.KubeConfig();
    robot.loadFromClusterAndUser(config.getCurrentCluster(), { name: 'robot', token: status.token });
    const user = `system:serviceaccount:${namespace}:robot`;
    const review = await robot.makeApiClient(k8s.AuthenticationV1Api).createSelfSubjectReview({ body: {} });
    assert.equal(review.status.userInfo.username, user);
    await refused(403, 'Forbidden', `User "${user}" cannot list resource "pods"`,
        robot.makeApiClient(k8s.CoreV1Api).listNamespacedPod({ namespace }));
    const may = () => robot.makeApiClient(k8s.AuthorizationV1Api).createSelfSubjectAccessReview({ body: {
        spec: { resourceAttributes: { namespace, verb: 'list', resource: 'pods' } } } });
    assert.equal((await may()).status.allowed, false);
    const rbac = config.makeApiClient(k8s.RbacAuthorizationV1Api);
    await rbac.createNamespacedRole({ namespace, body: { metadata: { name: 'r' },
        rules: [{ apiGroups: [''], resources: ['pods'], verbs: ['list'] }] } });
    await rbac.createNamespacedRoleBinding({ namespace, body: { metadata: { name: 'r' },
        roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'r' },
        subjects: [{ kind: 'ServiceAccount', name: 'robot', namespace }] } });
    await eventually('the role counts', async () => (await may()).status.allowed);
    await robot.makeApiClient(k8s.CoreV1Api).listNamespacedPod({ namespace });
    await assert.rejects(new k8s.Exec(robot).exec(namespace, 'p', 'c', ['true'], new Kept(), null, null, false),
        'a stream asks for rights, too');
};

async function main() {
    const [verb, name, namespace] = process.argv.slice(2);
    if (verb === 'list') {
        console.log(Object.keys(scenarios).join('\n'));
        return;
    }
    assert(verb === 'run' && name in scenarios && namespace, 'usage: scenarios.js list | run SCENARIO NAMESPACE');
    await loadClient();
    await scenarios[name](namespace);
    // Idle connections of the client would keep the process.
    process.exit(0);
}

await main().catch((error) => {
    console.error(error);
    process.exit(1);
});
