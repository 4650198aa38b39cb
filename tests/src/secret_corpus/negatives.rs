//! Files without a secret, full of what looks like one.

use fastrand::Rng;

use super::Sample;
use super::alphabet::{
    ALNUM, BASE32, HEX, LETTERS, LOWER, UPPER, URL64, base64, base64_url, bytes, one, text, uuid,
};
use super::families::unchecked;
use super::keys::{age_public, certificate, curve, hex, png, public_pem, request, ssh_public};
use super::places::Draft;

/// A file of the next kind.
pub(super) fn make(rng: &mut Rng, index: usize) -> Sample {
    let (kind, path, text) = KINDS[index % KINDS.len()];
    let body = text(rng);
    Draft::new(kind, path).line(body).finish(100_000 + index)
}

type Kind = (&'static str, &'static str, fn(&mut Rng) -> String);

fn repeat(rng: &mut Rng, count: usize, line: impl Fn(&mut Rng) -> String) -> String {
    (0..count).map(|_| line(rng)).collect::<Vec<_>>().join("\n")
}

const KINDS: &[Kind] = &[
    // Placeholders and references.
    ("placeholder-env", ".env.example", |r| {
        let blank = one(
            r,
            &["", "changeme", "your-key-here", "<your token>", "xxxxxxxxxxxxxxxxxxxx", "REPLACE_ME", "TODO"],
        );
        format!(
            "API_KEY={blank}\nCLIENT_SECRET=your_client_secret_here\nDB_PASSWORD={blank}\nSECRET_KEY=insert-secret-key"
        )
    }),
    ("placeholder-tokens", "README.md", |r| {
        let fill = one(r, &["x", "X", "*", "0", "."]);
        format!(
            "Set your token:\n\n    export GITHUB_TOKEN=ghp_{}\n    export OPENAI_API_KEY=sk-{}\n    export SLACK=xoxb-your-token-here",
            fill.repeat(36),
            fill.repeat(48)
        )
    }),
    ("elided-tokens", "docs/quickstart.md", |_| {
        "```sh\nexport ANTHROPIC_API_KEY=sk-ant-...\nexport OPENAI_API_KEY=\"sk-...\"\ncurl -H \"Authorization: Bearer <token>\" https://api.corp.test\ncurl -H \"Authorization: Bearer $TOKEN\" https://api.corp.test\n```".to_owned()
    }),
    ("aws-documented", "docs/aws.md", |_| {
        "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()
    }),
    ("jwt-documented", "docs/jwt.md", |_| {
        let head = base64_url(br#"{"alg":"HS256","typ":"JWT"}"#);
        let claims = base64_url(br#"{"sub":"1234567890","name":"John Doe","iat":1516239022}"#);
        format!("The example of the site:\n\n    {head}.{claims}.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c")
    }),
    ("environment-look-up", "src/config.py", |_| {
        "import os\n\nPASSWORD = os.environ[\"DB_PASSWORD\"]\nSECRET_KEY = os.getenv(\"SECRET_KEY\", \"\")\napi_key = settings.VENDOR_API_KEY\nclient = Client(token=get_token(), password=vault.read(\"kv/db\"))".to_owned()
    }),
    ("environment-look-up-js", "src/config.ts", |_| {
        "export const apiKey = process.env.API_KEY ?? \"\";\nconst password: string = await keychain.get(\"password\");\nconst secret = config.get<string>(\"auth.clientSecret\");\ntype Login = { password: string; token?: string };".to_owned()
    }),
    ("actions-secrets", ".github/workflows/ci.yml", |_| {
        "env:\n  GITHUB_TOKEN: ${{ secrets.GITHUB_TOKEN }}\n  NPM_TOKEN: ${{ secrets.NPM_TOKEN }}\n  DB_PASSWORD: ${DB_PASSWORD:?missing}".to_owned()
    }),
    ("helm-values", "templates/secret.yaml", |_| {
        "stringData:\n  password: {{ .Values.auth.password | quote }}\n  token: {{ required \"token\" .Values.token }}\n  apiKey: !Ref ApiKeyParameter".to_owned()
    }),
    ("secret-reference", "deploy.yaml", |_| {
        "env:\n  - name: DB_PASSWORD\n    valueFrom:\n      secretKeyRef: {name: database-credentials, key: password}\nsecretArn: arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod/db-AbCdEf".to_owned()
    }),
    ("terraform-reference", "main.tf", |_| {
        "variable \"db_password\" {\n  type      = string\n  sensitive = true\n}\nresource \"db\" \"main\" {\n  password = var.db_password\n  token    = data.vault_generic_secret.app.data[\"token\"]\n}".to_owned()
    }),
    ("bad-checksum", "tests/fixtures/tokens.txt", |r| {
        format!("{}\n{}\n{}", unchecked(r, "ghp_"), unchecked(r, "ghs_"), unchecked(r, "gho_"))
    }),
    ("local-database", "docker-compose.yml", |_| {
        "environment:\n  DATABASE_URL: postgres://postgres:postgres@localhost:5432/app_test\n  REDIS_URL: redis://redis:6379/0\n  MONGO: mongodb://user:password@localhost/test".to_owned()
    }),
    ("url-template", "docs/database.md", |_| {
        "postgres://USER:PASSWORD@HOST:5432/DB\nhttps://<user>:<password>@git.corp.test/repo.git\nmysql://${DB_USER}:${DB_PASS}@${DB_HOST}/app\nhttps://user:***@proxy.corp.test:3128".to_owned()
    }),
    ("url-plain", "links.txt", |r| {
        repeat(r, 8, |r| format!("https://cdn.corp.test/{}/{}?v={}", uuid(r), hex(r, 12), text(r, ALNUM, 11)))
    }),
    // Lock files and hashes.
    ("package-lock", "package-lock.json", |r| {
        repeat(r, 10, |r| {
            format!(
                "    \"node_modules/{}\": {{\n      \"version\": \"4.1.2\",\n      \"integrity\": \"sha512-{}\"\n    }},",
                text(r, LOWER, 7),
                base64(&bytes(r, 64))
            )
        })
    }),
    ("cargo-lock", "Cargo.lock", |r| {
        repeat(r, 10, |r| {
            format!(
                "[[package]]\nname = \"{}\"\nversion = \"1.0.4\"\nchecksum = \"{}\"\n",
                text(r, LOWER, 6),
                hex(r, 64)
            )
        })
    }),
    ("yarn-lock", "yarn.lock", |r| {
        repeat(r, 8, |r| {
            format!(
                "left-pad@^1.3.0:\n  resolved \"https://registry.yarnpkg.com/left-pad/-/left-pad-1.3.0.tgz#{}\"\n  integrity sha512-{}\n",
                hex(r, 40),
                base64(&bytes(r, 64))
            )
        })
    }),
    ("go-sum", "go.sum", |r| {
        repeat(r, 12, |r| format!("example.test/{} v1.4.0 h1:{}", text(r, LOWER, 8), base64(&bytes(r, 32))))
    }),
    ("poetry-lock", "poetry.lock", |r| {
        repeat(r, 8, |r| {
            format!("    {{file = \"pkg-1.0-py3-none-any.whl\", hash = \"sha256:{}\"}},", hex(r, 64))
        })
    }),
    ("requirements-hashes", "requirements.txt", |r| {
        repeat(r, 6, |r| format!("idna==3.7 \\\n    --hash=sha256:{}", hex(r, 64)))
    }),
    ("gemfile-lock", "Gemfile.lock", |r| repeat(r, 5, |r| format!("  rails (7.1.3) sha256={}", hex(r, 64)))),
    ("nix-hash", "default.nix", |r| {
        repeat(r, 4, |r| {
            format!(
                "  src = fetchurl {{ url = \"https://x.test/a.tar.gz\"; hash = \"sha256-{}\"; }};",
                base64(&bytes(r, 32))
            )
        })
    }),
    ("bazel", "WORKSPACE", |r| {
        repeat(r, 4, |r| format!("http_archive(\n    name = \"rules\",\n    sha256 = \"{}\",\n)", hex(r, 64)))
    }),
    ("git-log", "CHANGELOG.txt", |r| {
        repeat(r, 10, |r| format!("commit {}\n    Fix the parser ({})", hex(r, 40), hex(r, 7)))
    }),
    ("image-digest", "kustomization.yaml", |r| {
        repeat(r, 4, |r| format!("  - image: registry.corp.test/web@sha256:{}", hex(r, 64)))
    }),
    ("checksums", "SHA256SUMS", |r| {
        repeat(r, 8, |r| format!("{}  release-{}.tar.gz", hex(r, 64), text(r, LOWER, 5)))
    }),
    ("md5-etag", "access.log", |r| {
        repeat(r, 8, |r| format!("10.0.0.7 - - \"GET /a.js\" 200 \"{}\" etag=\"{}\"", uuid(r), hex(r, 32)))
    }),
    ("password-hashes", "migrations/seed.sql", |r| {
        repeat(r, 3, |r| format!("UPDATE t SET fingerprint = 'sha256:{}' WHERE id = 3;", hex(r, 64)))
    }),
    ("cache-keys", "cache.json", |r| {
        repeat(r, 6, |r| {
            format!(
                "{{\"cache_key\": \"{}\", \"sort_key\": \"{}\", \"etag\": \"{}\"}}",
                hex(r, 40),
                uuid(r),
                hex(r, 32)
            )
        })
    }),
    // Identifiers.
    ("uuids", "ids.json", |r| {
        repeat(r, 8, |r| {
            format!(
                "{{\"id\": \"{}\", \"tenant_id\": \"{}\", \"client_id\": \"{}\"}}",
                uuid(r),
                uuid(r),
                uuid(r)
            )
        })
    }),
    ("trace-ids", "trace.log", |r| {
        repeat(r, 8, |r| {
            format!("traceparent=00-{}-{}-01 span={} level=info", hex(r, 32), hex(r, 16), hex(r, 16))
        })
    }),
    ("cloud-identifiers", "outputs.tf.json", |r| {
        format!(
            "{{\"vpc\": \"vpc-{}\", \"role\": \"arn:aws:iam::123456789012:role/{}\", \"zone\": \"Z{}\", \"account\": \"123456789012\"}}",
            hex(r, 17),
            text(r, LETTERS, 20),
            text(r, UPPER, 20)
        )
    }),
    ("oauth-client-id", "web/config.json", |r| {
        format!(
            "{{\"clientId\": \"{}-{}.apps.googleusercontent.com\", \"slackChannel\": \"C{}\", \"redirect\": \"https://app.corp.test/cb\"}}",
            text(r, b"123456789", 12),
            text(r, LOWER, 32),
            text(r, UPPER, 10)
        )
    }),
    ("public-vendor-keys", "web/index.html", |r| {
        format!(
            "<script>Stripe('pk_live_{}');\nsentry.init({{dsn: 'https://{}@o12345.ingest.sentry.io/4505'}});\ngtag('config', 'G-{}');</script>",
            text(r, ALNUM, 24),
            hex(r, 32),
            text(r, UPPER, 10)
        )
    }),
    ("session-log", "session.log", |r| {
        repeat(r, 6, |r| {
            format!("INFO request_id={} user_id={} session started", text(r, ALNUM, 22), r.u32(..))
        })
    }),
    ("chain-addresses", "ledger.csv", |r| repeat(r, 6, |r| format!("0x{},0x{},1.5", hex(r, 40), hex(r, 64)))),
    // Public keys and certificates.
    ("ssh-public", "authorized_keys", |r| repeat(r, 4, ssh_public)),
    ("known-hosts", "known_hosts", |r| repeat(r, 3, |r| format!("git.corp.test {}", ssh_public(r)))),
    ("public-pem", "jwt.pub", |r| public_pem(r).join("\n")),
    ("certificate", "ca.pem", |r| certificate(r).join("\n")),
    ("certificate-request", "server.csr", |r| request(r).join("\n")),
    ("kubeconfig-ca", "kubeconfig", |r| {
        format!(
            "clusters:\n- cluster:\n    certificate-authority-data: {}",
            base64(certificate(r).join("\n").as_bytes())
        )
    }),
    ("age-public", ".sops.yaml", |r| format!("creation_rules:\n  - age: {}", age_public(r))),
    ("wireguard-public", "wg0.peers", |r| {
        format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.0.0.2/32", curve(r))
    }),
    ("vapid-public", "push.js", |r| {
        format!(
            "const applicationServerPublicKey = 'B{}';\nconst publicKey = \"{}\";",
            text(r, URL64, 86),
            curve(r)
        )
    }),
    ("signature", "release.sig", |r| {
        let lines = super::alphabet::wrapped(&bytes(r, 256), 64).join("\n");
        format!("-----BEGIN PGP SIGNATURE-----\n\n{lines}\n=aB3d\n-----END PGP SIGNATURE-----")
    }),
    ("key-armour-in-code", "src/pem.py", |_| {
        "BEGIN = \"-----BEGIN PRIVATE KEY-----\"\nEND = \"-----END PRIVATE KEY-----\"\nif text.startswith(BEGIN) and END in text:\n    raise ValueError(\"a private key\")".to_owned()
    }),
    // Code and data.
    ("minified-js", "dist/app.min.js", |r| {
        let parts = repeat(r, 40, |r| {
            format!(
                "function {}(e,t){{var n=e.{};return t?n.{}:{}}}",
                text(r, LETTERS, 2),
                text(r, LETTERS, 6),
                text(r, LETTERS, 9),
                r.u32(..)
            )
        });
        parts.replace('\n', ";")
    }),
    ("source-map", "dist/app.js.map", |r| {
        format!(
            "{{\"version\":3,\"sources\":[\"a.ts\"],\"mappings\":\"{}\"}}",
            repeat(r, 60, |r| text(r, LETTERS, 4)).replace('\n', ",")
        )
    }),
    ("chunk-names", "dist/manifest.json", |r| {
        repeat(r, 6, |r| {
            format!("\"static/js/main.{}.chunk.js\": \"/static/js/{}.js\",", hex(r, 20), text(r, ALNUM, 8))
        })
    }),
    ("base64-image", "style.css", |r| {
        let length = r.usize(300..1500);
        format!(".logo {{ background: url(data:image/png;base64,{}); }}", png(r, length))
    }),
    ("embedded-image", "README.ipynb", |r| {
        let length = r.usize(600..2000);
        format!("\"data\": {{\n \"image/png\": \"{}\"\n}}", png(r, length))
    }),
    ("base64-blob", "fixture.b64", |r| super::alphabet::wrapped(&bytes(r, 600), 76).join("\n")),
    ("test-vectors", "aes_gcm.rsp", |r| {
        repeat(r, 5, |r| {
            format!(
                "Count = 3\nKey = {}\nIV = {}\nPT = {}\nTag = {}",
                hex(r, 32),
                hex(r, 24),
                hex(r, 32),
                hex(r, 32)
            )
        })
    }),
    ("test-vectors-code", "sha2_test.go", |r| {
        repeat(r, 5, |r| format!("\t{{\"{}\", \"{}\"}},", hex(r, 64), text(r, LETTERS, 12)))
    }),
    ("byte-array", "table.c", |r| {
        repeat(r, 8, |r| {
            bytes(r, 12).iter().map(|byte| format!("0x{byte:02x}")).collect::<Vec<_>>().join(", ") + ","
        })
    }),
    ("translations", "locales/fr.json", |_| {
        "{\"password\": \"Mot de passe\", \"forgot_password\": \"Mot de passe oublié ?\", \"api_key\": \"Clé d'API\", \"token_expired\": \"Votre jeton a expiré, reconnectez-vous\"}".to_owned()
    }),
    ("interface-text", "login.tsx", |_| {
        "<Input type=\"password\" name=\"password\" placeholder=\"Enter your password\" autoComplete=\"current-password\" />\n<label htmlFor=\"api-token\">API token</label>\nconst TOKEN_KEY = \"acme.session.token\";\nconst passwordRules = \"at-least-twelve-characters\";".to_owned()
    }),
    ("schema", "openapi.yaml", |_| {
        "components:\n  schemas:\n    Login:\n      required: [username, password]\n      properties:\n        password: {type: string, format: password, minLength: 12}\n        access_token: {type: string, description: The token from /oauth/token}\n  securitySchemes:\n    apiKey: {type: apiKey, in: header, name: X-API-Key}".to_owned()
    }),
    ("sql-schema", "schema.sql", |_| {
        "CREATE TABLE users (\n  id uuid PRIMARY KEY,\n  password_hash text NOT NULL,\n  api_key_id bigint REFERENCES api_keys (id),\n  reset_token varchar(64)\n);".to_owned()
    }),
    ("code-with-names", "auth.go", |_| {
        "func (s *Server) checkPassword(password string, secret []byte) error {\n\ttoken := s.tokens.Issue(userID, time.Hour)\n\tif token == \"\" || password == emptyPassword {\n\t\treturn errInvalidToken\n\t}\n\tapiKey := r.Header.Get(\"X-Api-Key\")\n\tsecretName := \"billing-database-credentials\"\n\treturn nil\n}".to_owned()
    }),
    ("tests-with-words", "auth_test.py", |_| {
        "def test_login(client):\n    response = client.post('/login', json={'username': 'alice', 'password': 'password'})\n    assert response.json()['token'] == 'test-token'\n    monkeypatch.setenv('API_KEY', 'dummy')\n    secret = 'not-a-real-secret'".to_owned()
    }),
    ("content-policy", "headers.conf", |r| {
        format!(
            "Content-Security-Policy: script-src 'nonce-{}' 'sha256-{}'",
            base64(&bytes(r, 16)),
            base64(&bytes(r, 32))
        )
    }),
    ("subresource", "index.html", |r| {
        format!("<script src=\"/a.js\" integrity=\"sha384-{}\" crossorigin></script>", base64(&bytes(r, 48)))
    }),
    ("svg-path", "icon.svg", |r| {
        let path = repeat(r, 30, |r| format!("M{}.{}c{}.{}", r.u8(..), r.u8(..), r.u8(..), r.u8(..)))
            .replace('\n', " ");
        format!("<svg viewBox=\"0 0 24 24\"><path d=\"{path}\"/></svg>")
    }),
    ("onion-and-base32", "services.txt", |r| {
        let lower = |r: &mut Rng| text(r, BASE32, 56).to_lowercase();
        repeat(r, 3, |r| format!("http://{}.onion/", lower(r)))
    }),
    ("prose", "docs/security.md", |r| {
        let word = one(r, &["token", "password", "secret", "API key"]);
        format!(
            "Never commit a {word}. Rotate the {word} each quarter; the password: it is in the vault, not here.\nThe token = authorization + expiry. Ask for a secret: the form is on the intranet."
        )
    }),
    ("version-pins", "versions.toml", |r| {
        repeat(r, 5, |r| {
            format!(
                "rev = \"{}\"\ntoken_version = \"2026-07-28\"\nkey_path = \"/etc/ssl/private/server.key\"",
                text(r, HEX, 40)
            )
        })
    }),
];
