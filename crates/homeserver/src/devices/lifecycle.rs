//! The end of devices and accounts: what has to happen in several services at once.

use ruma::{DeviceId, UserId};

use crate::{Homeserver, client_api::ApiError};

impl Homeserver {
    /// Removes devices with everything that is theirs. Unknown ids are no error.
    pub async fn remove_devices(&self, user_id: &UserId, device_ids: &[String]) -> Result<(), ApiError> {
        let gone = self
            .store
            .delete_devices(user_id.as_str(), device_ids, self.devices.note_list_change())
            .await?;
        self.accounts.devices_gone(user_id, &gone);
        Ok(())
    }

    /// Removes every device of a user, or every other one.
    pub async fn remove_all_devices(&self, user_id: &UserId, except: Option<&DeviceId>) -> Result<(), ApiError> {
        let devices = self.store.devices(user_id.as_str()).await?;
        let ids: Vec<String> = devices
            .into_iter()
            .map(|device| device.device_id)
            .filter(|id| except.is_none_or(|kept| kept != id.as_str()))
            .collect();
        self.remove_devices(user_id, &ids).await
    }

    /// Ends an account and its devices.
    pub async fn deactivate_account(&self, user_id: &UserId) -> Result<(), ApiError> {
        self.accounts.deactivate(user_id).await?;
        self.remove_all_devices(user_id, None).await
    }
}
