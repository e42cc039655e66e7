//! The TCP port's bearer token (RFC 6750, section 2.1): `--http-token-file`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::Api;
use super::problem::{Code, Problem};

/// What health checks may ask without a token: it says nothing about volumes.
const FREE: [&str; 2] = ["/healthz", "/readyz"];

/// Why a token can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file.
    #[error("can't read the token file \"{}\": {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is in it.
    #[error(
        "the token file \"{}\" has no usable token: one line of visible ASCII characters, 16 or more, as from \
         `openssl rand -hex 32`",
        path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
    },
}

/// Shortest token: less can be guessed.
const TOKEN_BYTES_MIN: usize = 16;

/// The token that requests have to bring; kept as its hash.
#[derive(Debug)]
pub struct Token {
    path: PathBuf,
    digest: Mutex<[u8; 32]>,
}

impl Token {
    /// Reads the file.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        Ok(Self {
            path: path.to_owned(),
            digest: Mutex::new(digest_of(path)?),
        })
    }

    /// Reads the file again; what was known stays when that fails.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn reload(&self) -> Result<(), TokenError> {
        let digest = digest_of(&self.path)?;
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = digest;
        Ok(())
    }

    fn is_in(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let value = value.to_str().unwrap_or_default();
        let Some((scheme, token)) = value.split_once(' ') else {
            return false;
        };
        let digest = *self.digest.lock().unwrap_or_else(PoisonError::into_inner);
        // Hashes are compared: how long that takes says nothing about the token.
        scheme.eq_ignore_ascii_case("bearer") && hash(token.trim()) == digest
    }
}

fn digest_of(path: &Path) -> Result<[u8; 32], TokenError> {
    let text = fs::read_to_string(path).map_err(|source| TokenError::Io {
        path: path.to_owned(),
        source,
    })?;
    let token = text.trim();
    let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.len() < TOKEN_BYTES_MIN || !is_visible {
        return Err(TokenError::Unusable {
            path: path.to_owned(),
        });
    }
    Ok(hash(token))
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Lets a request on the TCP port through that brings the token, if one is wanted.
pub(super) async fn check(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Some(token) = &api.token else {
        return next.run(request).await;
    };
    if FREE.contains(&request.uri().path()) || token.is_in(request.headers()) {
        return next.run(request).await;
    }
    let problem = Problem::new(Code::Unauthorized, "this port wants a bearer token")
        .help("send `Authorization: Bearer TOKEN` with what is in the daemon's --http-token-file");
    let mut response = problem.into_response();
    let challenge = HeaderValue::from_static("Bearer realm=\"volund\"");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens_and_a_bad_file_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(matches!(Token::read(&path), Err(TokenError::Io { .. })));
        for bad in [
            "",
            "short\n",
            "two words of enough length",
            "umlaute-äöü-äöü-äöü",
        ] {
            fs::write(&path, bad).unwrap();
            let error = Token::read(&path).unwrap_err().to_string();
            assert!(error.contains("16 or more"), "{bad:?}: {error}");
        }
        fs::write(&path, "0123456789abcdef\n").unwrap();
        let token = Token::read(&path).unwrap();
        let opens = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            token.is_in(&HeaderMap::from_iter([(header::AUTHORIZATION, value)]))
        };
        assert!(opens("Bearer 0123456789abcdef"));
        assert!(opens("bearer 0123456789abcdef"));
        assert!(!opens("Bearer 0123456789abcde"));
        assert!(!opens("Bearer"));
        assert!(!opens("Basic 0123456789abcdef"));
        assert!(!token.is_in(&HeaderMap::new()));
        fs::write(&path, "").unwrap();
        assert!(token.reload().is_err());
        assert!(opens("Bearer 0123456789abcdef"));
        fs::write(&path, "fedcba9876543210").unwrap();
        token.reload().unwrap();
        assert!(!opens("Bearer 0123456789abcdef"));
        assert!(opens("Bearer fedcba9876543210"));
    }
}
